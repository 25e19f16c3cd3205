// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The mapping table of a domain: the one truth about what is mapped (§ MAP, § UNMAP).
//!
//! [`MappingTable`] keeps 24 bytes an entry: the access flags live in the low bits of the guest-physical address, which a
//! granule of at least [`MIN_GRANULE`] leaves free.

mod leaf;
mod row;
#[cfg(test)]
mod tests;
mod tree;

use std::sync::{Arc, RwLock};

use crate::spec::{Gpa, Iova, MapFlags};

pub use tree::MappingTable;

/// The smallest granule that a device can have, in bytes: the table keeps flags below it.
pub const MIN_GRANULE: u64 = 8;

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

/// The new mapping overlaps one that exists (M41).
#[derive(Debug, PartialEq, Eq)]
pub struct Overlap;

/// The range cuts a mapping in two (U51).
#[derive(Debug, PartialEq, Eq)]
pub struct Split;
