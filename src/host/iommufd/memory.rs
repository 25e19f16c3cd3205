// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Guest memory, placed once in an address space of its own at its guest-physical addresses.
//!
//! No page table hangs on that address space, so it pins nothing. Every mapping of the guest is a copy of a part
//! of it: the kernel shares the pages, pins them once and accounts them once.

use super::context::{Context, Ioas, READ_WRITE};
use super::kernel::{self, CallError};
use crate::host::mapping::{IovaRange, Mapping};
use crate::host::{HostError, MemoryRegion};
use crate::spec::{Gpa, Iova};

/// A piece of guest memory: whole pages, both ends inclusive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Region {
    pub first: u64,
    pub last: u64,
    /// As announced: address and length.
    announced: (u64, u64),
}

impl Region {
    /// Its addresses, where they are virtual ones too.
    pub fn range(&self) -> IovaRange {
        IovaRange {
            first: Iova(self.first),
            last: Iova(self.last),
        }
    }

    /// The common part with a range of guest-physical addresses.
    pub fn intersection(&self, first: u64, last: u64) -> Option<(u64, u64)> {
        let (first, last) = (self.first.max(first), self.last.min(last));
        (first <= last).then_some((first, last))
    }
}

/// A region that could not be placed.
struct Refused {
    /// Address and length.
    announced: (u64, u64),
    why: String,
}

/// All of guest memory.
pub(super) struct GuestMemory {
    ioas: Ioas,
    /// Ascending.
    regions: Vec<Region>,
    /// What could not be placed.
    refused: Vec<Refused>,
    page_size: u64,
    /// The kernel has MAP_FILE.
    maps_files: bool,
}

impl GuestMemory {
    pub fn new(context: &Context) -> Result<Self, CallError> {
        // First of all: what is no iommufd fails here, and is told nothing else.
        let ioas = context.ioas()?;
        let maps_files = context.has_map_file();
        if !maps_files {
            log::warn!(
                "this kernel has no IOMMU_IOAS_MAP_FILE (Linux 6.14): guest memory is mapped by its address in this process"
            );
        }
        Ok(Self {
            ioas,
            regions: Vec::new(),
            refused: Vec::new(),
            page_size: kernel::page_size(),
            maps_files,
        })
    }

    /// The address space to copy from.
    pub fn ioas(&self) -> &Ioas {
        &self.ioas
    }

    pub fn regions(&self) -> &[Region] {
        &self.regions
    }

    /// The parts of a range of guest-physical addresses that are memory, ascending, each of one region.
    pub fn parts(&self, first: u64, last: u64) -> impl Iterator<Item = (u64, u64)> + '_ {
        let start = self.regions.partition_point(|region| region.last < first);
        self.regions[start..]
            .iter()
            .map_while(move |region| region.intersection(first, last))
    }

    /// Bytes of a mapping that are memory.
    pub fn bytes(&self, mapping: &Mapping) -> u64 {
        let (first, last) = (mapping.gpa.0, mapping.last_gpa());
        let parts = self.parts(first, last);
        parts.map(|(first, last)| last - first + 1).sum()
    }

    /// Fails when some of a range of guest-physical addresses is memory that could not be placed.
    pub fn check_refused(&self, first: u64, last: u64) -> Result<(), HostError> {
        let touches = |refused: &&Refused| {
            let (gpa, length) = refused.announced;
            gpa <= last && first - gpa.min(first) < length
        };
        match self.refused.iter().find(touches) {
            None => Ok(()),
            Some(Refused { announced, why }) => {
                Err(HostError::Unreachable(Gpa(announced.0), why.clone()))
            }
        }
    }

    /// Places a region. It can be copied from when this succeeds.
    pub fn add(&mut self, region: &MemoryRegion) -> Result<Region, HostError> {
        self.place(region).inspect_err(|error| {
            self.refused.push(Refused {
                announced: (region.gpa.0, region.length),
                why: error.to_string(),
            });
        })
    }

    fn place(&mut self, region: &MemoryRegion) -> Result<Region, HostError> {
        let new = self.whole_pages(region)?;
        let length = new.last - new.first + 1;
        let skipped = new.first - region.gpa.0;
        let file = region
            .file
            .as_ref()
            .filter(|(file, _)| self.maps_files && kernel::is_memory_file(file));
        match file {
            Some((file, offset)) => {
                self.ioas
                    .map_file(new.first, file, offset + skipped, length, READ_WRITE)
            }
            None => self.map_user_memory(new.first, region.user_address + skipped as usize, length),
        }
        .map_err(|error| error.of_range(new.first, new.last))?;
        let index = self
            .regions
            .partition_point(|region| region.first < new.first);
        self.regions.insert(index, new);
        Ok(new)
    }

    #[expect(
        unsafe_code,
        reason = "a region without a file is known by its address only"
    )]
    fn map_user_memory(&self, gpa: u64, address: usize, length: u64) -> Result<(), CallError> {
        // SAFETY: a `MemoryRegion` is guest memory that this process has mapped at this address and keeps mapped
        // until the region is removed; the removal takes it out of the address space.
        unsafe { self.ioas.map_user_memory(gpa, address, length) }
    }

    /// Forgets a region; its copies are gone before. `None` when it never was there.
    pub fn forget(&mut self, region: &MemoryRegion) -> Option<Region> {
        let announced = (region.gpa.0, region.length);
        self.refused
            .retain(|refused| refused.announced != announced);
        let index = self
            .regions
            .iter()
            .position(|region| region.announced == announced)?;
        Some(self.regions.remove(index))
    }

    /// Takes a forgotten region out of the address space.
    pub fn unmap(&self, region: Region) -> Result<(), HostError> {
        self.ioas
            .unmap(region.range(), region.last - region.first + 1)
            .map(drop)
            .map_err(|error| error.of_range(region.first, region.last))
    }

    /// The whole pages of a region: nothing smaller can be mapped.
    fn whole_pages(&self, region: &MemoryRegion) -> Result<Region, HostError> {
        let refuse = |why: &str| {
            HostError::Range(format!(
                "guest memory at {} of {:#x} bytes: {why}",
                region.gpa, region.length
            ))
        };
        let mask = self.page_size - 1;
        let start = match &region.file {
            Some((_, offset)) => *offset,
            None => region.user_address as u64,
        };
        if (start ^ region.gpa.0) & mask != 0 {
            return Err(refuse("its pages are not the host's pages"));
        }
        let end = region
            .gpa
            .0
            .checked_add(region.length)
            .ok_or_else(|| refuse("it ends beyond the last address"))?;
        let first = region
            .gpa
            .0
            .checked_add(mask)
            .ok_or_else(|| refuse("it has no whole page"))?
            & !mask;
        let end = end & !mask;
        if end <= first {
            return Err(refuse("it has no whole page"));
        }
        Ok(Region {
            first,
            last: end - 1,
            announced: (region.gpa.0, region.length),
        })
    }
}
