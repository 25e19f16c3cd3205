// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Guest memory comes as a whole new map each time; the device wants to know what is different.

use std::os::unix::fs::MetadataExt;
use std::sync::Arc;

use vm_memory::{
    GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion, GuestRegionMmap,
};

use crate::host::MemoryRegion;
use crate::spec::Gpa;

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
pub(super) struct Regions(Vec<Known>);

/// What is different in a new map.
#[derive(Default)]
pub(super) struct Difference {
    pub removed: Vec<MemoryRegion>,
    pub added: Vec<MemoryRegion>,
}

impl Regions {
    /// Takes over a new map.
    pub fn update(&mut self, memory: &GuestMemoryMmap) -> Difference {
        let new: Vec<_> = memory.iter().map(describe).collect();
        let mut difference = Difference::default();
        self.0.retain(|known| {
            let stays = new
                .iter()
                .any(|(identity, _)| known.identity == *identity && identity.file.is_some());
            if !stays {
                difference.removed.push(known.region.clone());
            }
            stays
        });
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
