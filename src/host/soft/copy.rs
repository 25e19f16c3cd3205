// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! From memory to memory, without a buffer in between.

use vm_memory::{GuestAddress, GuestMemoryBackend};

use crate::host::Requester;
use crate::host::mapping::{IovaRange, Mapping, MappingTable};
use crate::host::soft::SoftHost;
use crate::host::soft::access::{CHUNK, Endpoint, SharedMemory, View, read};
use crate::spec::{Gpa, Iova, MapFlags};

impl SoftHost {
    /// Copies up to `length` bytes from `from` to `to`, as far as both are mapped for it, and no more than 64 KiB; says
    /// how many. It neither waits nor reports: where it says 0, [`SoftHost::access`] finds out why.
    pub fn copy_mapped(&self, requester: Requester, from: Iova, to: Iova, length: usize) -> usize {
        self.requester(requester).map_or(0, |endpoint| {
            endpoint.copy_mapped(requester, [from, to], length.min(CHUNK), &self.memory)
        })
    }
}

impl Endpoint {
    /// The locks are held as by [`Endpoint::attempt`].
    fn copy_mapped(
        &self,
        requester: Requester,
        [from, to]: [Iova; 2],
        length: usize,
        memory: &SharedMemory,
    ) -> usize {
        let views = self.views();
        let view = views.as_ref().map(|views| views.get(requester.pasid));
        let Some(View::Domain { mappings, .. }) = view else {
            return 0;
        };
        let table = read(mappings);
        let memory = read(memory);
        let (Some(mut from), Some(mut to)) = (
            Walk::new(&table, from, length, MapFlags::READ),
            Walk::new(&table, to, length, MapFlags::WRITE),
        ) else {
            return 0;
        };
        let mut done = 0;
        while done < length {
            let (Some((source, readable)), Some((target, writable))) = (from.at(done), to.at(done))
            else {
                break;
            };
            let count = readable.min(writable).min(length - done);
            let slice = |gpa: Gpa| memory.get_slice(GuestAddress(gpa.0), count);
            let (Ok(source), Ok(target)) = (slice(source), slice(target)) else {
                break;
            };
            source.copy_to_volatile_slice(target);
            done += count;
        }
        done
    }
}

/// Walks over the mappings of a range.
struct Walk<I> {
    first: Iova,
    needed: MapFlags,
    mappings: I,
    current: Option<Mapping>,
}

impl Walk<()> {
    /// `None` for a range that is empty or goes beyond the last address.
    fn new(
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
    /// Where byte `offset` is, and how many are from there on. Offsets only grow.
    fn at(&mut self, offset: usize) -> Option<(Gpa, usize)> {
        let address = Iova(self.first.0.checked_add(offset as u64)?);
        if self.current?.range.last < address {
            self.current = self.mappings.next();
        }
        let mapping = self.current?;
        if !mapping.range.contains(address) || !mapping.flags.contains(self.needed) {
            return None;
        }
        let room = usize::try_from(mapping.range.last.0 - address.0).unwrap_or(usize::MAX);
        Some((mapping.translate(address), room.saturating_add(1)))
    }
}
