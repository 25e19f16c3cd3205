// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Guest memory: regions of shared memory, and a pool of addresses for rings and buffers.

use std::fs::File;
use std::os::fd::{AsRawFd, FromRawFd};
use std::sync::Arc;

use vhost::VhostUserMemoryRegionInfo;
use vm_memory::{
    Bytes, FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion,
    GuestRegionMmap, MmapRegion,
};

/// Guest memory.
pub struct Ram {
    pub map: GuestMemoryMmap,
    next: u64,
    end: u64,
}

/// A new memfd.
pub fn memfd(length: u64) -> File {
    // SAFETY: the name is a C string, and the result is checked.
    let fd = unsafe { libc::memfd_create(c"guest".as_ptr(), libc::MFD_CLOEXEC) };
    assert!(fd >= 0, "memfd: {}", std::io::Error::last_os_error());
    // SAFETY: a new descriptor that nobody else has.
    let file = unsafe { File::from_raw_fd(fd) };
    file.set_len(length).expect("the length of a memfd");
    file
}

/// A region of guest memory over a memfd of its own.
pub fn region(gpa: u64, length: u64) -> GuestRegionMmap {
    region_of(memfd(length), 0, gpa, length)
}

/// A region of guest memory over a part of a file.
pub fn region_of(file: File, offset: u64, gpa: u64, length: u64) -> GuestRegionMmap {
    let mapped =
        MmapRegion::from_file(FileOffset::new(file, offset), length as usize).expect("a mapping");
    GuestRegionMmap::new(mapped, GuestAddress(gpa)).expect("a region")
}

impl Ram {
    /// Memory of these regions. Rings and buffers are taken from the first.
    pub fn new(regions: &[(u64, u64)]) -> Self {
        Self::of(
            regions
                .iter()
                .map(|&(gpa, length)| region(gpa, length))
                .collect(),
        )
    }

    /// Memory of these regions. Rings and buffers are taken from the first.
    pub fn of(regions: Vec<GuestRegionMmap>) -> Self {
        let first = &regions[0];
        let (next, end) = (first.start_addr().0, first.start_addr().0 + first.len());
        Self {
            map: GuestMemoryMmap::from_regions(regions).expect("guest memory"),
            next,
            end,
        }
    }

    /// So many bytes of the first region for good, on a page boundary.
    pub fn allocate(&mut self, length: u64) -> u64 {
        let address = self.next.next_multiple_of(4096);
        self.next = address + length;
        assert!(self.next <= self.end, "the test's memory is full");
        address
    }

    /// The regions, as a front-end announces them.
    pub fn infos(&self) -> Vec<VhostUserMemoryRegionInfo> {
        self.map.iter().map(info).collect()
    }

    /// Adds a region, and says how a front-end announces it.
    pub fn insert(&mut self, region: GuestRegionMmap) -> VhostUserMemoryRegionInfo {
        let info = info(&region);
        self.map = self.map.insert_region(Arc::new(region)).expect("room");
        info
    }

    /// Takes a region out. It stays mapped for as long as the result lives.
    pub fn remove(&mut self, gpa: u64) -> (VhostUserMemoryRegionInfo, Arc<GuestRegionMmap>) {
        let length = self
            .map
            .find_region(GuestAddress(gpa))
            .expect("a region")
            .len();
        let (map, region) = self
            .map
            .remove_region(GuestAddress(gpa), length)
            .expect("a region");
        self.map = map;
        (info(&region), region)
    }

    /// Where the front-end has an address mapped: what it names ring addresses by.
    pub fn user_address(&self, gpa: u64) -> u64 {
        let region = self.map.find_region(GuestAddress(gpa)).expect("memory");
        region.as_ptr() as u64 + (gpa - region.start_addr().0)
    }

    pub fn read<const N: usize>(&self, gpa: u64) -> [u8; N] {
        let mut bytes = [0; N];
        self.map
            .read_slice(&mut bytes, GuestAddress(gpa))
            .expect("memory");
        bytes
    }

    pub fn read_vec(&self, gpa: u64, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        self.map
            .read_slice(&mut bytes, GuestAddress(gpa))
            .expect("memory");
        bytes
    }

    pub fn write(&self, gpa: u64, bytes: &[u8]) {
        self.map
            .write_slice(bytes, GuestAddress(gpa))
            .expect("memory");
    }
}

fn info(region: &GuestRegionMmap) -> VhostUserMemoryRegionInfo {
    let file = region.file_offset().expect("a file");
    VhostUserMemoryRegionInfo {
        guest_phys_addr: region.start_addr().0,
        memory_size: region.len(),
        userspace_addr: region.as_ptr() as u64,
        mmap_offset: file.start(),
        mmap_handle: file.file().as_raw_fd(),
    }
}
