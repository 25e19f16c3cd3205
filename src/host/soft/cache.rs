// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Translations that a port keeps: PCI's Address Translation Cache, or the IOMMU's own.

use crate::host::mapping::{IovaRange, Mapping};
use crate::spec::{DomainId, EventFlags, Gpa, Iova, MapFlags, Pasid};

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

/// A translation that can be kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Translation {
    /// The domain that it comes from; `None` in bypass.
    pub(super) domain: Option<DomainId>,
    pub(super) mapping: Mapping,
    /// The kinds of access that need not ask again. Another kind is not denied: it looks at the table (X84).
    pub(super) permits: EventFlags,
}

/// A slot's content: a [`Cached`] with what it permits, in 48 bytes.
#[derive(Clone, Copy)]
pub(super) struct Entry {
    pub(super) pasid: Option<Pasid>,
    pub(super) domain: Option<DomainId>,
    pub(super) range: IovaRange,
    gpa: Gpa,
    flags: MapFlags,
    permits: EventFlags,
}

const _: () = assert!(size_of::<Option<Entry>>() == 48);

impl Entry {
    fn serves(&self, pasid: Option<Pasid>, iova: Iova, kinds: EventFlags) -> bool {
        self.pasid == pasid && self.range.contains(iova) && self.permits.contains(kinds)
    }

    fn mapping(&self) -> Mapping {
        Mapping {
            range: self.range,
            gpa: self.gpa,
            flags: self.flags,
        }
    }

    /// Whether it translates an address of a range of a domain.
    pub(super) fn is_of(&self, domain: DomainId, range: IovaRange) -> bool {
        self.domain == Some(domain) && self.range.intersection(&range).is_some()
    }
}

/// One slot a page, found by the low bits of its number: the later of two pages that meet takes it. A mapping
/// of many pages takes a slot for each page that is used.
#[derive(Default)]
pub(super) struct Cache {
    /// None before the first translation: most ports use one of their caches.
    slots: Vec<Option<Entry>>,
    /// A bit for each slot that has something: what is kept is found without a look at every slot.
    occupied: [u64; SLOTS / 64],
    pub(super) counters: CacheCounters,
}

impl Cache {
    fn slot(iova: Iova) -> usize {
        (iova.0 >> PAGE_BITS) as usize % SLOTS
    }

    /// The translation of an address, if it is there and permits the kinds of access.
    pub(super) fn find(
        &mut self,
        pasid: Option<Pasid>,
        iova: Iova,
        kinds: EventFlags,
    ) -> Option<Mapping> {
        let slot = self.slots.get(Self::slot(iova)).copied().flatten();
        let found = slot.filter(|entry| entry.serves(pasid, iova, kinds));
        match found {
            Some(_) => self.counters.hits += 1,
            None => self.counters.misses += 1,
        }
        found.map(|entry| entry.mapping())
    }

    /// Keeps what an access at an address has found.
    pub(super) fn insert(&mut self, pasid: Option<Pasid>, iova: Iova, found: &Translation) {
        self.slots.resize(SLOTS, None);
        let slot = Self::slot(iova);
        self.slots[slot] = Some(Entry {
            pasid,
            domain: found.domain,
            range: found.mapping.range,
            gpa: found.mapping.gpa,
            flags: found.mapping.flags,
            permits: found.permits,
        });
        self.occupied[slot / 64] |= 1 << (slot % 64);
    }

    /// Whether nothing is kept.
    pub(super) fn is_empty(&self) -> bool {
        self.occupied.iter().all(|&slots| slots == 0)
    }

    /// Removes what came from a range of a domain. No mapping of the domain crosses the ends of the range.
    pub(super) fn invalidate_range(&mut self, domain: DomainId, range: IovaRange) {
        let pages = (range.last.0 >> PAGE_BITS) - (range.first.0 >> PAGE_BITS);
        let matching = |entry: &Entry| entry.is_of(domain, range);
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

    /// Removes the translations that `matching` is true of, wherever they are.
    pub(super) fn invalidate_where(&mut self, matching: impl Fn(&Entry) -> bool) {
        for word in 0..self.occupied.len() {
            let mut left = self.occupied[word];
            while left != 0 {
                self.remove(word * 64 + left.trailing_zeros() as usize, &matching);
                left &= left - 1;
            }
        }
    }

    fn remove(&mut self, index: usize, matching: impl Fn(&Entry) -> bool) {
        let slot = self.slots.get_mut(index);
        if let Some(slot) = slot.filter(|slot| slot.as_ref().is_some_and(matching)) {
            *slot = None;
            self.occupied[index / 64] &= !(1 << (index % 64));
            self.counters.invalidated += 1;
        }
    }

    /// Forgets everything: the endpoint's own decision, which does not count as invalidation.
    pub(super) fn clear(&mut self) {
        self.slots.fill(None);
        self.occupied = Default::default();
    }

    /// What is in the cache.
    pub(super) fn entries(&self) -> impl Iterator<Item = Cached> + '_ {
        self.slots.iter().flatten().map(|entry| Cached {
            pasid: entry.pasid,
            domain: entry.domain,
            mapping: entry.mapping(),
        })
    }
}
