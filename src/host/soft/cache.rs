// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Translations that a port keeps: PCI's Address Translation Cache, or the IOMMU's own.

use crate::host::mapping::{IovaRange, Mapping};
use crate::spec::{DomainId, Iova, MapFlags, Pasid};

/// Translations in a cache. With 4 KiB pages, 1 MiB of source and 1 MiB of destination fit.
const SLOTS: usize = 512;
const PAGE_BITS: u32 = 12;

/// What the cache did, since it was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CacheCounters {
    /// Accesses that a cached translation served.
    pub hits: u64,
    /// Accesses that had to look at the table.
    pub misses: u64,
    /// Translations that were removed because the IOMMU took them away.
    pub invalidated: u64,
}

/// A translation as the cache has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cached {
    /// The address space; `None` without a PASID.
    pub pasid: Option<Pasid>,
    /// The domain that it comes from; `None` in bypass.
    pub domain: Option<DomainId>,
    /// The translation.
    pub mapping: Mapping,
}

impl Cached {
    fn is_for(&self, pasid: Option<Pasid>, iova: Iova) -> bool {
        self.pasid == pasid && self.mapping.range.contains(iova)
    }
}

/// One slot a page, found by the low bits of its number: the later of two pages that meet takes it. A mapping
/// of many pages takes a slot for each page that is used.
#[derive(Default)]
pub(super) struct Cache {
    /// None before the first translation: most ports use one of their caches.
    slots: Vec<Option<Cached>>,
    pub(super) counters: CacheCounters,
}

impl Cache {
    fn slot(iova: Iova) -> usize {
        (iova.0 >> PAGE_BITS) as usize % SLOTS
    }

    /// The translation of an address, if it is there and permits the access.
    pub(super) fn find(
        &mut self,
        pasid: Option<Pasid>,
        iova: Iova,
        needed: MapFlags,
    ) -> Option<Mapping> {
        let slot = self.slots.get(Self::slot(iova)).copied().flatten();
        let found = slot
            .filter(|cached| cached.is_for(pasid, iova) && cached.mapping.flags.contains(needed));
        match found {
            Some(_) => self.counters.hits += 1,
            None => self.counters.misses += 1,
        }
        found.map(|cached| cached.mapping)
    }

    pub(super) fn insert(&mut self, iova: Iova, cached: Cached) {
        self.slots.resize(SLOTS, None);
        self.slots[Self::slot(iova)] = Some(cached);
    }

    /// Removes what came from a range of a domain. No mapping of the domain crosses the ends of the range.
    pub(super) fn invalidate_range(&mut self, domain: DomainId, range: IovaRange) {
        let pages = (range.last.0 >> PAGE_BITS) - (range.first.0 >> PAGE_BITS);
        let matching = |cached: &Cached| {
            cached.domain == Some(domain) && cached.mapping.range.intersection(&range).is_some()
        };
        // A translation is in the slots of pages of its own mapping, so of the range.
        if pages < SLOTS as u64 {
            let first = Self::slot(range.first);
            for page in 0..=pages as usize {
                self.remove((first + page) % SLOTS, matching);
            }
        } else {
            self.invalidate_where(matching);
        }
    }

    /// Removes the translations that `matching` is true of.
    pub(super) fn invalidate_where(&mut self, matching: impl Fn(&Cached) -> bool) {
        for slot in 0..self.slots.len() {
            self.remove(slot, &matching);
        }
    }

    fn remove(&mut self, slot: usize, matching: impl Fn(&Cached) -> bool) {
        let slot = self.slots.get_mut(slot);
        if let Some(slot) = slot.filter(|slot| slot.as_ref().is_some_and(matching)) {
            *slot = None;
            self.counters.invalidated += 1;
        }
    }

    /// Forgets everything: the endpoint's own decision, which does not count as invalidation.
    pub(super) fn clear(&mut self) {
        self.slots.fill(None);
    }

    /// What is in the cache.
    pub(super) fn entries(&self) -> impl Iterator<Item = Cached> + '_ {
        self.slots.iter().flatten().copied()
    }
}
