// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The mapping table of a domain: the one truth about what is mapped (§ MAP, § UNMAP).
//!
//! A `BTreeMap` from the first address of a mapping to the rest of it, 24 bytes an entry: the access flags
//! live in the low bits of the guest-physical address, which a granule of at least [`MIN_GRANULE`] leaves free.

use std::collections::BTreeMap;
use std::sync::{Arc, RwLock};

use crate::spec::{Gpa, Iova, MapFlags};

/// The smallest granule that a device can have, in bytes: the table keeps flags below it.
pub const MIN_GRANULE: u64 = 8;
const FLAGS: u64 = MIN_GRANULE - 1;

/// A mapping table that the device writes and a host may read.
///
/// Holding the lock for reading while an access is carried out keeps its translation in force; the device
/// takes it for writing to remove a mapping. So "after UNMAP no access is in flight" needs no more than this.
pub type SharedMappings = Arc<RwLock<MappingTable>>;

/// A range of virtual addresses; both ends are inclusive and `first <= last`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IovaRange {
    /// First address.
    pub first: Iova,
    /// Last address.
    pub last: Iova,
}

impl IovaRange {
    /// Every address.
    pub const ALL: Self = Self {
        first: Iova(0),
        last: Iova(u64::MAX),
    };

    /// The range from `first` to `last`; `None` when `last < first`.
    pub fn new(first: u64, last: u64) -> Option<Self> {
        (first <= last).then_some(Self {
            first: Iova(first),
            last: Iova(last),
        })
    }

    /// Its length in bytes; 0 stands for 2^64.
    pub fn length(&self) -> u64 {
        (self.last.0 - self.first.0).wrapping_add(1)
    }

    /// Whether `address` lies in the range.
    pub fn contains(&self, address: Iova) -> bool {
        self.first <= address && address <= self.last
    }

    /// Whether all of `other` lies in the range.
    pub fn covers(&self, other: &Self) -> bool {
        self.first <= other.first && other.last <= self.last
    }

    /// From the first address of both to the last.
    pub fn hull(&self, other: &Self) -> Self {
        Self {
            first: self.first.min(other.first),
            last: self.last.max(other.last),
        }
    }

    /// The common part.
    pub fn intersection(&self, other: &Self) -> Option<Self> {
        Self::new(
            self.first.0.max(other.first.0),
            self.last.0.min(other.last.0),
        )
    }
}

/// A mapping: a range of virtual addresses, where it goes, and what is allowed there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mapping {
    /// The virtual addresses.
    pub range: IovaRange,
    /// The guest-physical address of the first of them.
    pub gpa: Gpa,
    /// READ, WRITE, MMIO.
    pub flags: MapFlags,
}

impl Mapping {
    /// The guest-physical address of the last of them.
    pub fn last_gpa(&self) -> u64 {
        self.gpa
            .0
            .saturating_add(self.range.last.0 - self.range.first.0)
    }

    /// How many bytes there are from an address of the range on; `usize::MAX` stands for more.
    pub fn bytes_from(&self, iova: Iova) -> usize {
        debug_assert!(self.range.contains(iova));
        usize::try_from(self.range.last.0 - iova.0)
            .unwrap_or(usize::MAX)
            .saturating_add(1)
    }

    /// Where an address of the range goes.
    pub fn translate(&self, iova: Iova) -> Gpa {
        debug_assert!(self.range.contains(iova));
        Gpa(self.gpa.0 + (iova.0 - self.range.first.0))
    }
}

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

/// The new mapping overlaps one that exists (M41).
#[derive(Debug, PartialEq, Eq)]
pub struct Overlap;

/// The range cuts a mapping in two (U51).
#[derive(Debug, PartialEq, Eq)]
pub struct Split;

/// The mappings of a domain.
#[derive(Default)]
pub struct MappingTable {
    entries: BTreeMap<u64, Entry>,
    /// What all entries cover, modulo 2^64.
    bytes: u64,
}

impl MappingTable {
    /// An empty table.
    pub fn new() -> Self {
        Self::default()
    }

    /// Number of mappings.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Bytes that are mapped; `u64::MAX` also when it is every address.
    pub fn bytes(&self) -> u64 {
        if self.bytes == 0 && !self.is_empty() {
            return u64::MAX;
        }
        self.bytes
    }

    /// Whether there is no mapping.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
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

    /// All mappings, ascending.
    pub fn iter(&self) -> impl Iterator<Item = Mapping> + '_ {
        self.entries
            .iter()
            .map(|(&first, entry)| entry.mapping(first))
    }

    /// The mappings that touch the range, ascending.
    pub fn overlapping(&self, range: IovaRange) -> impl Iterator<Item = Mapping> + '_ {
        let start = self
            .lookup(range.first)
            .map_or(range.first, |m| m.range.first);
        self.entries
            .range(start.0..=range.last.0)
            .map(|(&first, entry)| entry.mapping(first))
    }
}
