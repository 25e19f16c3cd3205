// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A domain: an address space with the endpoints in it.

use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use crate::host::ReservedRegion;
use crate::host::mapping::{IovaRange, MappingTable, SharedMappings};
use crate::host::table::Table;
use crate::spec::{EndpointId, Status};

/// What a domain translates by: its description, the same for as long as the domain exists.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum By {
    /// Nothing: identity.
    Bypass,
    /// Mappings.
    Mappings,
    /// A table of the driver.
    Table(Table),
}

#[derive(Debug)]
pub(super) enum DomainKind {
    /// F_BYPASS: identity, no mappings.
    Bypass,
    /// Mappings.
    Paging(Paging),
    /// A table of the driver, no mappings.
    Table(Table),
}

pub(super) struct Paging {
    pub mappings: SharedMappings,
    /// What the endpoints in the domain have reserved: ascending and disjoint.
    reserved: Vec<IovaRange>,
}

impl std::fmt::Debug for Paging {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Paging")
            .field("mappings", &self.read().len())
            .finish()
    }
}

impl Paging {
    pub fn new() -> Self {
        Self {
            mappings: Arc::new(RwLock::new(MappingTable::new())),
            reserved: Vec::new(),
        }
    }

    pub fn read(&self) -> RwLockReadGuard<'_, MappingTable> {
        self.mappings.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for accesses in flight (the software host reads the table while it carries one out).
    pub fn write(&self) -> RwLockWriteGuard<'_, MappingTable> {
        self.mappings
            .write()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// V62: whether a MAP touches what an endpoint in the domain has reserved.
    pub fn touches_reserved(&self, range: &IovaRange) -> bool {
        let index = self
            .reserved
            .partition_point(|region| region.last < range.first);
        self.reserved
            .get(index)
            .is_some_and(|region| region.first <= range.last)
    }

    /// A32: an endpoint cannot enter where mappings of the domain lie in what it has reserved.
    pub fn check_reserved(&self, reserved: &[ReservedRegion]) -> Result<(), Status> {
        let mappings = self.read();
        if reserved
            .iter()
            .any(|region| mappings.overlaps(&region.range))
        {
            return Err(Status::Unsupp);
        }
        Ok(())
    }

    /// Takes over what the endpoints in the domain have reserved by now. Regions of different endpoints may overlap.
    pub fn set_reserved(&mut self, regions: impl Iterator<Item = IovaRange>) {
        let mut regions: Vec<_> = regions.collect();
        regions.sort_by_key(|region| region.first);
        self.reserved.clear();
        for region in regions {
            match self.reserved.last_mut() {
                Some(last) if region.first <= last.last => *last = last.hull(&region),
                _ => self.reserved.push(region),
            }
        }
    }
}

#[derive(Debug)]
pub(super) struct Domain {
    pub kind: DomainKind,
    /// The endpoints in it and how many of their requesters are attached, ascending. Small: memory counts where a
    /// guest makes many domains.
    endpoints: Vec<(EndpointId, usize)>,
}

/// What a domain has lost with a requester.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Left {
    /// Others of the endpoint are still in the domain.
    Requester,
    /// It was the last of its endpoint.
    Endpoint,
    /// It was the last of all (D39).
    Everything,
}

impl Domain {
    /// One that nothing is attached to yet.
    pub fn new(kind: DomainKind) -> Self {
        Self {
            kind,
            endpoints: Vec::new(),
        }
    }

    pub fn by(&self) -> By {
        match self.kind {
            DomainKind::Bypass => By::Bypass,
            DomainKind::Paging(_) => By::Mappings,
            DomainKind::Table(table) => By::Table(table),
        }
    }

    /// The endpoints with requesters in it, ascending.
    pub fn endpoints(&self) -> impl ExactSizeIterator<Item = EndpointId> {
        self.endpoints.iter().map(|&(endpoint, _)| endpoint)
    }

    /// Whether one requester is all that keeps it.
    pub fn has_one_requester(&self) -> bool {
        matches!(self.endpoints[..], [(_, 1)])
    }

    /// Counts a requester in; whether it is the first of its endpoint.
    pub fn enter(&mut self, endpoint: EndpointId) -> bool {
        match self.place_of(endpoint) {
            Ok(index) => {
                self.endpoints[index].1 += 1;
                false
            }
            Err(index) => {
                self.endpoints.insert(index, (endpoint, 1));
                true
            }
        }
    }

    /// Counts a requester out.
    pub fn leave(&mut self, endpoint: EndpointId) -> Left {
        let Ok(index) = self.place_of(endpoint) else {
            return Left::Requester;
        };
        let count = &mut self.endpoints[index].1;
        *count -= 1;
        if *count > 0 {
            return Left::Requester;
        }
        self.endpoints.remove(index);
        if self.endpoints.is_empty() {
            Left::Everything
        } else {
            Left::Endpoint
        }
    }

    fn place_of(&self, endpoint: EndpointId) -> Result<usize, usize> {
        self.endpoints
            .binary_search_by_key(&endpoint, |&(id, _)| id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(first: u64, last: u64) -> IovaRange {
        IovaRange::new(first, last).unwrap()
    }

    #[test]
    fn a_map_touches_what_any_endpoint_has_reserved__v62() {
        let regions = [
            range(0x30, 0x4f),
            range(0x10, 0x1f),
            // Two endpoints have the same, one of them more, and one a part of it.
            range(0x10, 0x1f),
            range(0x18, 0x27),
            range(0x11, 0x12),
            range(0x60, 0x60),
        ];
        let mut paging = Paging::new();
        paging.set_reserved(regions.into_iter());
        assert_eq!(paging.reserved.len(), 3);
        for first in 0..0x70 {
            for last in first..0x70 {
                let wanted = range(first, last);
                let touches = regions
                    .iter()
                    .any(|region| region.intersection(&wanted).is_some());
                assert_eq!(paging.touches_reserved(&wanted), touches, "{wanted:?}");
            }
        }
        paging.set_reserved([range(0, u64::MAX), range(5, 6)].into_iter());
        assert!(paging.touches_reserved(&range(u64::MAX, u64::MAX)));
        paging.set_reserved(std::iter::empty());
        assert!(!paging.touches_reserved(&range(0, u64::MAX)));
    }

    #[test]
    fn a_domain_ends_with_its_last_requester__d39() {
        let mut domain = Domain::new(DomainKind::Bypass);
        let (one, two) = (EndpointId(1), EndpointId(2));
        assert!(domain.enter(two));
        assert!(domain.has_one_requester());
        assert!(domain.enter(one));
        assert!(!domain.enter(one));
        assert_eq!(domain.endpoints().collect::<Vec<_>>(), [one, two]);
        assert_eq!(domain.leave(one), Left::Requester);
        assert_eq!(domain.leave(one), Left::Endpoint);
        assert_eq!(domain.leave(one), Left::Requester);
        assert_eq!(domain.leave(two), Left::Everything);
    }
}
