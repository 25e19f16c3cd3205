// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! From an access to where it goes: the caches, or what the requester's domain translates by.

use std::sync::{Arc, PoisonError, RwLockReadGuard};

use super::Port;
use super::state::Inner;
use crate::host::mapping::{IovaRange, Mapping, MappingTable, SharedMappings};
use crate::host::soft::access::{Access, Denied, permitted_by};
use crate::host::soft::cache::Translation;
use crate::host::soft::endpoint::{Source, View};
use crate::host::soft::table::{Needed, Page, Step, WalkError, trace, walk};
use crate::host::table::Table;
use crate::spec::{DomainId, EventFlags, Gpa, Iova, MapFlags, Pasid};

/// How often an access finds the entries of a table changing before it is aborted. Each time a walk has begun some times
/// already: a driver that changes an entry for good does not come near this number. One that changes entries for ever, on
/// purpose, keeps neither its engine nor an INVALIDATE.
pub(in crate::host::soft) const MAX_TURNS: u32 = 64;

/// How the accesses of a requester to an address are translated: for people.
pub(crate) enum Route {
    /// Not at all.
    Blocked,
    /// To the same address.
    Bypass,
    /// By mappings.
    Mappings {
        domain: DomainId,
        /// The one that the address is in.
        mapping: Option<Mapping>,
    },
    /// By a table of the driver.
    Table(TableRoute),
    /// By a table of the driver, which is not read now.
    Held { domain: DomainId, table: Arc<Table> },
}

/// The way of an address through a table of the driver.
pub(crate) struct TableRoute {
    pub(crate) domain: DomainId,
    pub(crate) table: Arc<Table>,
    /// The entries on the way, from the root on.
    pub(crate) steps: Vec<Step>,
    /// Where a read goes, or why it does not.
    pub(crate) page: Result<Page, WalkError>,
    /// Whether a write goes there too, whether or not DIRTY is set.
    pub(crate) writes: bool,
}

impl Port {
    /// An address translation request: whether the access would find a translation.
    ///
    /// # Errors
    /// Why it would not. The driver is not told. After [`Denied::Held`] it is to be asked again after [`Port::released`].
    pub fn translate(&self, access: Access, iova: Iova) -> Result<(), Denied> {
        self.settled(|inner| self.translate_locked(inner, access, iova).map(|_| ()))
    }

    /// How accesses to an address are translated, without a change of anything: caches do not count, and no flag is set.
    ///
    /// # Errors
    /// [`Denied::NoPasid`] and [`Denied::NoEndpoint`].
    pub(crate) fn route(&self, pasid: Option<Pasid>, iova: Iova) -> Result<Route, Denied> {
        self.check_pasid(pasid)?;
        // The table is not read once its last attachment has ended (X87).
        let inner = self.state.lock_for_access();
        let views = self.endpoint.views();
        let views = views.as_ref().ok_or(Denied::NoEndpoint)?;
        Ok(match views.get(pasid) {
            View::Blocked => Route::Blocked,
            View::Bypass => Route::Bypass,
            View::Domain {
                id,
                by: Source::Mappings(mappings),
                ..
            } => Route::Mappings {
                domain: *id,
                mapping: read(mappings).lookup(iova),
            },
            View::Domain {
                id,
                by: Source::Table(table),
                ..
            } => {
                if self.hold().is_on() {
                    return Ok(Route::Held {
                        domain: *id,
                        table: Arc::clone(table),
                    });
                }
                let write = Needed {
                    write: true,
                    ..Needed::default()
                };
                let (steps, page) = trace(table, &inner.memory, iova, Needed::default());
                let (_, written) = trace(table, &inner.memory, iova, write);
                Route::Table(TableRoute {
                    domain: *id,
                    table: Arc::clone(table),
                    steps,
                    page,
                    writes: written.is_ok(),
                })
            }
        })
    }

    /// Carries something out with the port locked. While entries of a table change under it, it lets the lock go and takes
    /// it again: whoever wants to invalidate goes first (X105). After [`MAX_TURNS`] that is a fault.
    pub(in crate::host::soft) fn settled<T>(
        &self,
        mut turn: impl FnMut(&mut Inner) -> Result<T, Denied>,
    ) -> Result<T, Denied> {
        for _ in 1..MAX_TURNS {
            match turn(&mut self.state.lock_for_access()) {
                Err(Denied::Contended) => std::thread::yield_now(),
                settled => return settled,
            }
        }
        turn(&mut self.state.lock_for_access())
    }

    /// One look: [`Denied::Contended`] is for [`Self::settled`].
    pub(super) fn translate_locked(
        &self,
        inner: &mut Inner,
        access: Access,
        iova: Iova,
    ) -> Result<Mapping, Denied> {
        let cache = inner.cache(access.translated);
        match cache.find(access.pasid, iova, access.kinds) {
            Some(mapping) => Ok(mapping),
            None => self.translate_anew(inner, access, iova),
        }
    }

    /// The same without what is kept, which the new translation replaces. That there is none is not kept (X83).
    pub(super) fn translate_anew(
        &self,
        inner: &mut Inner,
        access: Access,
        iova: Iova,
    ) -> Result<Mapping, Denied> {
        let found = self.look_up(inner, access, iova)?;
        let cache = inner.cache(access.translated);
        cache.insert(access.pasid, iova, &found);
        Ok(found.mapping)
    }

    /// Asks the IOMMU. The port is locked: what is found stays in force until it is let go.
    fn look_up(&self, inner: &Inner, access: Access, iova: Iova) -> Result<Translation, Denied> {
        self.check_pasid(access.pasid)?;
        let views = self.endpoint.views();
        let views = views.as_ref().ok_or(Denied::NoEndpoint)?;
        match views.get(access.pasid) {
            View::Blocked => Err(Denied::Blocked),
            View::Bypass => {
                let identity = Mapping {
                    range: IovaRange::ALL,
                    gpa: Gpa(0),
                    flags: MapFlags::READ | MapFlags::WRITE,
                };
                Ok(mapped(None, identity))
            }
            View::Domain {
                id,
                by: Source::Mappings(mappings),
                ..
            } => match read(mappings).lookup(iova) {
                Some(mapping) if mapping.flags.contains(access.needed()) => {
                    Ok(mapped(Some(*id), mapping))
                }
                Some(_) => Err(Denied::Permission),
                None => Err(Denied::Translation),
            },
            View::Domain {
                id,
                by: Source::Table(table),
                ..
            } => {
                if self.hold().is_on() {
                    return Err(Denied::Held);
                }
                let page = walk(table, &inner.memory, iova, needed(access.kinds))?;
                let mut permits = permitted_by(page.mapping.flags) - EventFlags::PRIVILEGED;
                permits.set(EventFlags::EXEC, page.exec);
                Ok(Translation {
                    domain: Some(*id),
                    mapping: page.mapping,
                    permits,
                })
            }
        }
    }
}

fn mapped(domain: Option<DomainId>, mapping: Mapping) -> Translation {
    Translation {
        domain,
        mapping,
        permits: permitted_by(mapping.flags),
    }
}

/// What an access needs of a table.
fn needed(kinds: EventFlags) -> Needed {
    Needed {
        write: kinds.contains(EventFlags::WRITE),
        exec: kinds.contains(EventFlags::EXEC),
        privileged: kinds.contains(EventFlags::PRIVILEGED),
    }
}

/// What the access of a walk fails with: X88 for the first two, X89 for the others.
impl From<WalkError> for Denied {
    fn from(error: WalkError) -> Self {
        match error {
            WalkError::Absent => Self::Translation,
            WalkError::Permission => Self::Permission,
            WalkError::Malformed => Self::Malformed,
            WalkError::Privileged => Self::Privileged,
            WalkError::Outside => Self::Outside,
            WalkError::NoMemory => Self::NoMemory,
            WalkError::Contended => Self::Contended,
        }
    }
}

/// Locks a table of the device. Nothing panics while it holds this lock, and if something did, the table is still whole.
pub(super) fn read(mappings: &SharedMappings) -> RwLockReadGuard<'_, MappingTable> {
    mappings.read().unwrap_or_else(PoisonError::into_inner)
}
