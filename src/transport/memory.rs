// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The guest memory that the front-end shares.
//!
//! The library maps it, and hands a whole map over after each message that changes it. The workers see that map once it was
//! checked; the device is told of the differences.

use std::io;
use std::ops::Deref;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::sync::Arc;

use vm_memory::{
    GuestAddress, GuestAddressSpace, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion,
    GuestRegionMmap,
};

use crate::device::Device;
use crate::host::MemoryRegion;
use crate::os::inherited;
use crate::spec::Gpa;
use crate::transport::Memory;

/// A region is longer than its file. An access beyond the end of the file would end this process (SIGBUS). The connection
/// ends instead.
#[derive(Debug, thiserror::Error)]
#[error(
    "guest memory at {gpa:#x} ends at {end:#x} in a file of {length:#x} bytes: make the file longer, or the region shorter"
)]
pub(super) struct BeyondFile {
    gpa: u64,
    end: u64,
    length: u64,
}

/// Guest memory, as messages change it.
pub(super) struct SharedMemory {
    /// What the workers see.
    map: Memory,
    known: Regions,
    truncation_logged: bool,
}

impl SharedMemory {
    pub fn new(map: Memory) -> Self {
        Self {
            map,
            known: Regions::default(),
            truncation_logged: false,
        }
    }

    /// The map that the workers see.
    pub fn map(&self) -> impl Deref<Target = GuestMemoryMmap> + use<> {
        self.map.memory()
    }

    /// Takes a map over from the library, which does not compare regions with the length of their files (vm-memory 0.18).
    ///
    /// # Errors
    /// A region is refused, and nothing has changed.
    pub fn set(&mut self, map: &GuestMemoryMmap) -> io::Result<()> {
        for region in map.iter() {
            check_length(region)?;
        }
        self.replace(map.clone());
        Ok(())
    }

    /// Whether this process has room for a descriptor of each region more: another daemon of the library receives them anew.
    ///
    /// # Errors
    /// It has not.
    pub fn check_room(&self) -> io::Result<()> {
        let map = self.map.memory();
        let files = map.iter().filter_map(GuestMemoryRegion::file_offset);
        let duplicates = files.map(|file| file.file().try_clone());
        duplicates.collect::<io::Result<Vec<_>>>().map(drop)
    }

    /// Gives all memory up.
    pub fn clear(&mut self) {
        self.replace(GuestMemoryMmap::new());
    }

    fn replace(&self, map: GuestMemoryMmap) {
        match self.map.lock() {
            Ok(guard) => guard.replace(map),
            Err(poisoned) => poisoned.into_inner().replace(map),
        }
    }

    /// Tells the device what has changed since the last call. No worker has an older map.
    pub fn tell(&mut self, device: &Device) {
        let difference = self.known.update(&self.map.memory());
        self.warn_of_truncation(&difference.added);
        if difference.removed.is_empty() && difference.added.is_empty() {
            return;
        }
        let result = device.update_memory(&self.map(), &difference.removed, &difference.added);
        for error in result.err().into_iter().flatten() {
            // Endpoints cannot reach the new memory, or a part of it. A refusal would end the connection, and with it
            // the guest.
            log::error!("{error}; endpoints do not reach it, or not all of it");
        }
    }

    /// Says, once a connection, what a front-end that truncates its memory would do to this process.
    fn warn_of_truncation(&mut self, added: &[MemoryRegion]) {
        let open = |region: &&MemoryRegion| {
            let file = region.file.as_ref();
            file.is_some_and(|(file, _)| inherited::can_shrink(file))
        };
        if let Some(region) = added.iter().find(open)
            && !std::mem::replace(&mut self.truncation_logged, true)
        {
            log::warn!(
                "guest memory at {} is a file that can be truncated, which would end this process (SIGBUS): seal it \
                 against that, as QEMU's memory-backend-memfd does",
                region.gpa
            );
        }
    }
}

fn check_length(region: &GuestRegionMmap) -> io::Result<()> {
    let Some(file) = region.file_offset() else {
        return Ok(());
    };
    let metadata = file.file().metadata()?;
    let end = file.start().saturating_add(region.len());
    // A device, such as /dev/dax0.0, has no length.
    if metadata.file_type().is_char_device() || end <= metadata.len() {
        return Ok(());
    }
    Err(io::Error::other(BeyondFile {
        gpa: region.start_addr().0,
        end,
        length: metadata.len(),
    }))
}

/// What makes two regions the same memory. Not the descriptor's number, nor where we have it mapped: a front-end
/// sends both anew with every map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Identity {
    gpa: u64,
    length: u64,
    /// Device and inode of the file, and the offset in it.
    file: Option<(u64, u64, u64)>,
}

struct Known {
    identity: Identity,
    region: MemoryRegion,
    /// Keeps `region.user_address` valid while the host may use it.
    _mapped: Option<Arc<GuestRegionMmap>>,
}

/// The regions that the device knows.
#[derive(Default)]
struct Regions(Vec<Known>);

/// What is different in a new map.
#[derive(Default)]
struct Difference {
    pub removed: Vec<MemoryRegion>,
    pub added: Vec<MemoryRegion>,
    /// Keeps the user addresses of `removed` valid until the host has been told.
    _gone: Vec<Known>,
}

impl Regions {
    /// Takes over a new map.
    fn update(&mut self, memory: &GuestMemoryMmap) -> Difference {
        let new: Vec<_> = memory.iter().map(describe).collect();
        let mut difference = Difference::default();
        let stays = |known: &mut Known| {
            new.iter()
                .any(|(identity, _)| known.identity == *identity && identity.file.is_some())
        };
        let gone: Vec<_> = self.0.extract_if(.., |known| !stays(known)).collect();
        difference.removed = gone.iter().map(|known| known.region.clone()).collect();
        difference._gone = gone;
        for (identity, region) in new {
            if self.0.iter().any(|known| known.identity == identity) {
                continue;
            }
            difference.added.push(region.clone());
            let mapped = memory
                .remove_region(GuestAddress(identity.gpa), identity.length)
                .ok()
                .map(|(_, mapped)| mapped);
            self.0.push(Known {
                identity,
                region,
                _mapped: mapped,
            });
        }
        difference
    }
}

fn describe(region: &GuestRegionMmap) -> (Identity, MemoryRegion) {
    let gpa = region.start_addr().0;
    let length = region.len();
    let file = region
        .file_offset()
        .map(|file| (Arc::clone(file.arc()), file.start()));
    let identity = Identity {
        gpa,
        length,
        file: file.as_ref().and_then(|(file, start)| {
            let metadata = file.metadata().ok()?;
            Some((metadata.dev(), metadata.ino(), *start))
        }),
    };
    let region = MemoryRegion {
        gpa: Gpa(gpa),
        length,
        user_address: region.as_ptr() as usize,
        file,
    };
    (identity, region)
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use vm_memory::FileOffset;

    use super::*;

    fn map(parts: &[(u64, usize, &File, u64)]) -> GuestMemoryMmap {
        GuestMemoryMmap::from_ranges_with_files(parts.iter().map(|(gpa, length, file, start)| {
            let file = file.try_clone().expect("a duplicate");
            (
                GuestAddress(*gpa),
                *length,
                Some(FileOffset::new(file, *start)),
            )
        }))
        .expect("a map")
    }

    fn addresses(regions: &[MemoryRegion]) -> Vec<u64> {
        regions.iter().map(|region| region.gpa.0).collect()
    }

    #[test]
    fn only_what_is_different_is_removed_and_added() {
        let file = tempfile::tempfile().expect("a file");
        let other = tempfile::tempfile().expect("a file");
        for file in [&file, &other] {
            file.set_len(0x10000).expect("a length");
        }
        let mut regions = Regions::default();
        let first = regions.update(&map(&[
            (0, 0x4000, &file, 0),
            (0x10000, 0x4000, &file, 0x4000),
        ]));
        assert_eq!(addresses(&first.added), [0, 0x10000]);
        assert!(first.removed.is_empty());
        // The same again, and one more.
        let again = regions.update(&map(&[
            (0, 0x4000, &file, 0),
            (0x10000, 0x4000, &file, 0x4000),
            (0x20000, 0x1000, &other, 0),
        ]));
        assert_eq!(addresses(&again.added), [0x20000]);
        assert!(again.removed.is_empty());
        // Another file, another offset: other memory.
        let moved = regions.update(&map(&[
            (0, 0x4000, &other, 0),
            (0x10000, 0x4000, &file, 0x5000),
        ]));
        assert_eq!(addresses(&moved.added), [0, 0x10000]);
        assert_eq!(addresses(&moved.removed), [0, 0x10000, 0x20000]);
        let nothing = regions.update(&GuestMemoryMmap::new());
        assert_eq!(addresses(&nothing.removed), [0, 0x10000]);
    }
}
