// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Guest memory of a test: a memfd, mapped here too.

use std::fs::File;
use std::os::fd::FromRawFd;
use std::sync::Arc;

use vhost_device_iommu::host::MemoryRegion;
use vhost_device_iommu::spec::Gpa;
use vm_memory::mmap::MmapRegion;
use vm_memory::{Bytes, FileOffset, VolatileMemory};

/// Guest memory.
pub struct Ram {
    file: Arc<File>,
    mapping: MmapRegion,
}

impl Ram {
    /// `length` bytes of zeros.
    pub fn new(length: u64) -> Self {
        // SAFETY: the name is a string with its end; the descriptor is new and ours.
        let file = unsafe {
            let fd = libc::memfd_create(c"guest".as_ptr(), libc::MFD_CLOEXEC);
            assert!(fd >= 0, "memfd_create: {}", std::io::Error::last_os_error());
            File::from_raw_fd(fd)
        };
        file.set_len(length).unwrap();
        let file = Arc::new(file);
        let offset = FileOffset::from_arc(file.clone(), 0);
        let mapping = MmapRegion::from_file(offset, length as usize).unwrap();
        Self { file, mapping }
    }

    /// Where a byte is in this process.
    pub fn at(&self, offset: u64) -> *const u8 {
        assert!(offset < self.mapping.size() as u64);
        self.mapping.as_ptr().wrapping_add(offset as usize)
    }

    pub fn write(&self, offset: u64, data: &[u8]) {
        let slice = self.mapping.as_volatile_slice();
        slice.write_slice(data, offset as usize).unwrap();
    }

    pub fn read(&self, offset: u64, data: &mut [u8]) {
        let slice = self.mapping.as_volatile_slice();
        slice.read_slice(data, offset as usize).unwrap();
    }

    /// A region of guest memory made of a part of this.
    pub fn region(&self, gpa: u64, offset: u64, length: u64) -> MemoryRegion {
        assert!(offset + length <= self.mapping.size() as u64);
        MemoryRegion {
            gpa: Gpa(gpa),
            length,
            user_address: self.at(offset) as usize,
            file: Some((self.file.clone(), offset)),
        }
    }
}
