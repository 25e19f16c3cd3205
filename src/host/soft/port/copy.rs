// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Copies from memory to memory, as far as that goes without waiting.

use vm_memory::{
    GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion, GuestRegionMmap,
    VolatileSlice,
};

use super::state::Inner;
use super::translate::read;
use super::walk::Walk;
use super::{CHUNK, Port};
use crate::host::soft::access::Access;
use crate::host::soft::endpoint::{Source, View};
use crate::spec::{Gpa, Iova};

impl Port {
    /// Copies up to `length` bytes from memory to memory, as far as both are mapped for it, and no more than 64 KiB;
    /// says how many. It neither waits nor reports: if it says 0, [`Port::transfer`] finds out why.
    pub fn copy(&self, source: (Access, Iova), target: (Access, Iova), length: usize) -> usize {
        let length = length.min(CHUNK);
        let mut inner = self.state.lock_for_access();
        if source.0.translated || target.0.translated {
            return self.copy_cached(&mut inner, source, target, length);
        }
        let views = self.endpoint.views();
        let view = |access: Access| views.as_ref().map(|views| views.get(access.pasid));
        let views_of_both = [source.0, target.0].map(view);
        if views_of_both.into_iter().flatten().any(View::is_table) {
            drop(views);
            return self.copy_cached(&mut inner, source, target, length);
        }
        let table = |access: Access| match view(access) {
            Some(View::Domain {
                by: Source::Mappings(mappings),
                ..
            }) => Some(read(mappings)),
            _ => None,
        };
        let Some(sources) = table(source.0) else {
            return 0;
        };
        // One lock for both, if they are the same table.
        let targets = (source.0.pasid != target.0.pasid).then(|| table(target.0));
        let targets = match &targets {
            None => &sources,
            Some(Some(targets)) => targets,
            Some(None) => return 0,
        };
        let (Some(mut from), Some(mut to)) = (
            Walk::new(&sources, source.1, length, source.0.needed()),
            Walk::new(targets, target.1, length, target.0.needed()),
        ) else {
            return 0;
        };
        let mut slices = Slices::new(&inner.memory);
        let mut done = 0;
        while done < length {
            let (Some(source), Some(target)) = (from.at(done), to.at(done)) else {
                break;
            };
            let moved = slices.copy(source, target, length - done);
            if moved == 0 {
                break;
            }
            done += moved;
        }
        done
    }

    /// A copy through caches: one half at least goes through the endpoint's own, or a table of the driver.
    fn copy_cached(
        &self,
        inner: &mut Inner,
        source: (Access, Iova),
        target: (Access, Iova),
        length: usize,
    ) -> usize {
        let mut done = 0;
        while done < length {
            let mut at = |(access, first): (Access, Iova)| {
                let iova = Iova(first.0.checked_add(done as u64)?);
                let mapping = self.translate_locked(inner, access, iova).ok()?;
                Some((mapping.translate(iova), mapping.bytes_from(iova)))
            };
            // The target second: DIRTY is not set there if there is nothing to write (X85).
            let Some(from) = at(source) else {
                break;
            };
            let Some(to) = at(target) else {
                break;
            };
            let moved = Slices::new(&inner.memory).copy(from, to, length - done);
            if moved == 0 {
                break;
            }
            done += moved;
        }
        done
    }
}

/// Slices of guest memory. The region of the one before is tried first: it mostly has the next one too.
struct Slices<'a> {
    memory: &'a GuestMemoryMmap,
    region: Option<&'a GuestRegionMmap>,
}

impl<'a> Slices<'a> {
    fn new(memory: &'a GuestMemoryMmap) -> Self {
        Self {
            memory,
            region: None,
        }
    }

    /// `None` if the bytes are not in one region.
    #[inline]
    fn get(&mut self, gpa: Gpa, count: usize) -> Option<VolatileSlice<'a>> {
        let address = GuestAddress(gpa.0);
        let known = self
            .region
            .filter(|region| region.to_region_addr(address).is_some());
        let region = known.or_else(|| self.memory.find_region(address))?;
        self.region = Some(region);
        region
            .get_slice(region.to_region_addr(address)?, count)
            .ok()
    }

    /// Copies the shortest of two pieces of memory and `length`; 0 if one of them is not in one region.
    #[inline]
    fn copy(&mut self, from: (Gpa, usize), to: (Gpa, usize), length: usize) -> usize {
        let count = from.1.min(to.1).min(length);
        let (Some(source), Some(target)) = (self.get(from.0, count), self.get(to.0, count)) else {
            return 0;
        };
        source.copy_to_volatile_slice(target);
        count
    }
}
