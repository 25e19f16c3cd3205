// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A walk over the mappings of a range, for copies: the next mapping costs less than a look-up.

use crate::host::mapping::{IovaRange, Mapping, MappingTable};
use crate::spec::{Gpa, Iova, MapFlags};

/// Walks over the mappings of a range.
pub(super) struct Walk<I> {
    first: Iova,
    needed: MapFlags,
    mappings: I,
    current: Option<Mapping>,
}

impl Walk<()> {
    /// `None` for a range that is empty or goes beyond the last address.
    pub(super) fn new(
        table: &MappingTable,
        first: Iova,
        length: usize,
        needed: MapFlags,
    ) -> Option<Walk<impl Iterator<Item = Mapping> + '_>> {
        let last = first.0.checked_add(length.checked_sub(1)? as u64)?;
        let mut mappings = table.overlapping(IovaRange::new(first.0, last)?);
        Some(Walk {
            first,
            needed,
            current: mappings.next(),
            mappings,
        })
    }
}

impl<I: Iterator<Item = Mapping>> Walk<I> {
    /// The guest-physical address of byte `offset`, and how many bytes its mapping has from there on. Offsets only grow.
    pub(super) fn at(&mut self, offset: usize) -> Option<(Gpa, usize)> {
        let address = Iova(self.first.0.checked_add(offset as u64)?);
        if self.current?.range.last < address {
            self.current = self.mappings.next();
        }
        let mapping = self.current?;
        if !mapping.range.contains(address) || !mapping.flags.contains(self.needed) {
            return None;
        }
        Some((mapping.translate(address), mapping.bytes_from(address)))
    }
}
