// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! UNMAPs that the table has carried out and the host has not been told of, and INVALIDATEs that it has not been told of.
//!
//! One call to the host is cheaper than several, so consecutive UNMAPs of a domain are joined for as long as nothing
//! else is mapped between what they removed, and so are consecutive INVALIDATEs of a domain. Their statuses are known when
//! the one call has been made.

use crate::device::domain::Paging;
use crate::host::mapping::{IovaRange, Mapping, MappingTable, Overlap, Split};
use crate::host::{Host, HostError};
use crate::spec::DomainId;

/// The joined UNMAPs, and what they removed.
#[derive(Default)]
pub(super) struct JoinedUnmaps {
    open: Option<Open>,
    /// What the open ones removed: it goes back when the host fails. Kept for its allocation.
    removed: Vec<Mapping>,
}

struct Open {
    domain: DomainId,
    /// From the first to the last removed mapping: nothing else is mapped in between.
    range: IovaRange,
    requests: u64,
}

/// What one UNMAP took out of the table.
pub(super) struct TakenOut {
    hull: IovaRange,
    /// Where in [`JoinedUnmaps::removed`] it begins.
    start: usize,
    /// Number of mappings.
    pub count: usize,
    /// Nothing else is mapped between it and what the open UNMAPs have removed.
    pub joins: bool,
}

/// What came of telling the host.
pub(super) struct Settled {
    /// How many requests it settles.
    pub requests: u64,
    pub result: Result<(), HostError>,
    /// Mappings that are in the table again.
    pub put_back: usize,
}

impl JoinedUnmaps {
    /// Whether there are open ones of a domain other than this.
    pub fn has_others_than(&self, domain: DomainId) -> bool {
        self.open.as_ref().is_some_and(|open| open.domain != domain)
    }

    /// Takes everything in the range out of the table. `None` when there is nothing (U52).
    ///
    /// # Errors
    /// The range cuts a mapping, and nothing is removed (U51).
    #[inline]
    pub fn take_out(
        &mut self,
        table: &mut MappingTable,
        range: &IovaRange,
    ) -> Result<Option<TakenOut>, Split> {
        let start = self.removed.len();
        table.remove(range, |mapping| self.removed.push(mapping))?;
        let removed = &self.removed[start..];
        let (Some(first), Some(last)) = (removed.first(), removed.last()) else {
            return Ok(None);
        };
        let hull = first.range.hull(&last.range);
        let joins = match &self.open {
            Some(open) => !table.overlaps(&open.range.hull(&hull)),
            None => true,
        };
        Ok(Some(TakenOut {
            hull,
            start,
            count: removed.len(),
            joins,
        }))
    }

    /// Joins a request to the open ones, or opens with it.
    pub fn join(&mut self, domain: DomainId, taken: &TakenOut) {
        match &mut self.open {
            Some(open) => {
                open.range = open.range.hull(&taken.hull);
                open.requests += 1;
            }
            None => {
                self.open = Some(Open {
                    domain,
                    range: taken.hull,
                    requests: 1,
                });
            }
        }
    }

    /// Puts what a request removed aside, so that the open ones before it can be settled.
    pub fn set_aside(&mut self, taken: &TakenOut) -> Vec<Mapping> {
        self.removed.split_off(taken.start)
    }

    /// Takes back the mappings that were put aside.
    pub fn take_back(&mut self, aside: Vec<Mapping>) {
        self.removed.extend(aside);
    }

    /// Tells the host of the open UNMAPs. When it fails and the mappings are in force, they are in the table again: the
    /// guest never sees OK for something that did not happen. `None` when none is open.
    #[inline]
    pub fn settle<'a>(
        &mut self,
        host: &dyn Host,
        paging: impl FnOnce(DomainId) -> Option<&'a Paging>,
    ) -> Option<Settled> {
        let open = self.open.take()?;
        let result = host.unmap(open.domain, open.range, &self.removed);
        let mut put_back = 0;
        if let Err(error) = &result
            && !matches!(error, HostError::Missing(_))
            && let Some(paging) = paging(open.domain)
        {
            let mut table = paging.write();
            for mapping in &self.removed {
                // Nothing was mapped there in between.
                let _: Result<(), Overlap> = table.insert(mapping);
            }
            put_back = self.removed.len();
        }
        self.removed.clear();
        self.removed.shrink_to(KEPT);
        Some(Settled {
            requests: open.requests,
            result,
            put_back,
        })
    }
}

/// The joined INVALIDATEs, all of one domain.
#[derive(Default)]
pub(super) struct JoinedInvalidates {
    domain: Option<DomainId>,
    /// Kept for its allocation.
    ranges: Vec<IovaRange>,
}

impl JoinedInvalidates {
    /// The domain of the open ones; `None` when none is open.
    pub fn domain(&self) -> Option<DomainId> {
        self.domain
    }

    /// Joins a request to the open ones, which are of this domain, or opens with it.
    pub fn join(&mut self, domain: DomainId, range: IovaRange) {
        self.domain = Some(domain);
        self.ranges.push(range);
    }

    /// Tells the host of the open INVALIDATEs. Where it fails, all of them count as not carried out. `None` when none is
    /// open.
    pub fn settle(&mut self, host: &dyn Host) -> Option<Settled> {
        let domain = self.domain.take()?;
        let settled = Settled {
            requests: self.ranges.len() as u64,
            result: host.invalidate(domain, &self.ranges),
            put_back: 0,
        };
        self.ranges.clear();
        Some(settled)
    }
}

/// Entries of [`JoinedUnmaps::removed`] that stay allocated: a batch of single UNMAPs needs no more.
const KEPT: usize = 4096;
