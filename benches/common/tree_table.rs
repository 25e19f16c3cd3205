// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The mapping table as a `BTreeMap`, as this project had it first: the measure of the one that it has now.

use std::collections::BTreeMap;

use vhost_device_iommu::host::mapping::{IovaRange, MIN_GRANULE, Mapping, Overlap, Split};
use vhost_device_iommu::spec::{Gpa, Iova, MapFlags};

const FLAGS: u64 = MIN_GRANULE - 1;

#[derive(Clone, Copy)]
struct Entry {
    last: u64,
    gpa_and_flags: u64,
}

impl Entry {
    fn mapping(&self, first: u64) -> Mapping {
        Mapping {
            range: IovaRange {
                first: Iova(first),
                last: Iova(self.last),
            },
            gpa: Gpa(self.gpa_and_flags & !FLAGS),
            flags: MapFlags::from_bits_truncate((self.gpa_and_flags & FLAGS) as u32),
        }
    }
}

/// The mappings of a domain.
#[derive(Default)]
pub struct TreeTable {
    entries: BTreeMap<u64, Entry>,
    /// What all entries cover, modulo 2^64.
    bytes: u64,
}

impl TreeTable {
    /// An empty table.
    pub fn new() -> Self {
        Self::default()
    }

    /// Whether any mapping touches the range.
    pub fn overlaps(&self, range: &IovaRange) -> bool {
        // Mappings are disjoint, so of those that begin at or before `last` only the latest can reach `first`.
        self.entries
            .range(..=range.last.0)
            .next_back()
            .is_some_and(|(_, entry)| entry.last >= range.first.0)
    }

    /// Adds a mapping. Its guest-physical address is a multiple of [`MIN_GRANULE`].
    pub fn insert(&mut self, mapping: &Mapping) -> Result<(), Overlap> {
        debug_assert_eq!(mapping.gpa.0 & FLAGS, 0);
        if self.overlaps(&mapping.range) {
            return Err(Overlap);
        }
        self.bytes = self.bytes.wrapping_add(mapping.range.length());
        self.entries.insert(
            mapping.range.first.0,
            Entry {
                last: mapping.range.last.0,
                gpa_and_flags: mapping.gpa.0 | u64::from(mapping.flags.bits()),
            },
        );
        Ok(())
    }

    /// Removes every mapping in the range and hands each to `removed`, ascending. Removes nothing when the
    /// range cuts a mapping (U51).
    pub fn remove(
        &mut self,
        range: &IovaRange,
        mut removed: impl FnMut(Mapping),
    ) -> Result<(), Split> {
        // The common case: one mapping, named exactly. One descent finds it and takes it out.
        if let std::collections::btree_map::Entry::Occupied(entry) =
            self.entries.entry(range.first.0)
            && entry.get().last == range.last.0
        {
            self.bytes = self.bytes.wrapping_sub(range.length());
            removed(entry.remove().mapping(range.first.0));
            return Ok(());
        }
        if self.cuts(range) {
            return Err(Split);
        }
        while let Some(first) = self.first_in(range) {
            if let Some(entry) = self.entries.remove(&first) {
                let mapping = entry.mapping(first);
                self.bytes = self.bytes.wrapping_sub(mapping.range.length());
                removed(mapping);
            }
        }
        Ok(())
    }

    fn first_in(&self, range: &IovaRange) -> Option<u64> {
        self.entries
            .range(range.first.0..=range.last.0)
            .next()
            .map(|(&first, _)| first)
    }

    /// Whether a mapping lies across either end of the range.
    fn cuts(&self, range: &IovaRange) -> bool {
        let crosses_first = self
            .entries
            .range(..range.first.0)
            .next_back()
            .is_some_and(|(_, entry)| entry.last >= range.first.0);
        let crosses_last = self
            .entries
            .range(range.first.0..=range.last.0)
            .next_back()
            .is_some_and(|(_, entry)| entry.last > range.last.0);
        crosses_first || crosses_last
    }

    /// The mapping that an address is in.
    pub fn lookup(&self, iova: Iova) -> Option<Mapping> {
        self.entries
            .range(..=iova.0)
            .next_back()
            .filter(|(_, entry)| entry.last >= iova.0)
            .map(|(&first, entry)| entry.mapping(first))
    }
}
