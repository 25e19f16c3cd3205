// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! An endpoint's access to memory: translate and transfer, a chunk at a time.

use std::collections::BTreeMap;
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use crate::host::mapping::{Mapping, SharedMappings};
use crate::host::soft::book::{Book, PendingResponse};
use crate::host::{EndpointProperties, Fault, PageRequest, PageRequests, Requester};
use crate::spec::{
    DomainId, EndpointId, EventFlags, Gpa, Iova, MapFlags, PageResponseCode, Pasid, Reason,
};

/// The most bytes transferred before the locks are let go: an UNMAP waits for no more than this, some ten
/// microseconds.
pub(super) const CHUNK: usize = 64 << 10;

/// What an access does.
pub enum Transfer<'a> {
    /// Reads guest memory into the buffer.
    Read(&'a mut [u8]),
    /// Writes the buffer to guest memory.
    Write(&'a [u8]),
}

impl Transfer<'_> {
    pub(crate) fn len(&self) -> usize {
        match self {
            Self::Read(buffer) => buffer.len(),
            Self::Write(buffer) => buffer.len(),
        }
    }

    pub(super) fn access(&self) -> EventFlags {
        match self {
            Self::Read(_) => EventFlags::READ,
            Self::Write(_) => EventFlags::WRITE,
        }
    }

    /// What a mapping must allow (M45).
    fn needed(&self) -> MapFlags {
        match self {
            Self::Read(_) => MapFlags::READ,
            Self::Write(_) => MapFlags::WRITE,
        }
    }

    /// Moves the bytes `done .. done + count` of the buffer; says how many were in RAM.
    pub(super) fn carry_out(
        &mut self,
        memory: &GuestMemoryMmap,
        gpa: Gpa,
        done: usize,
        count: usize,
    ) -> usize {
        let result = match self {
            Self::Read(buffer) => buffer
                .get_mut(done..done + count)
                .map(|part| memory.read(part, GuestAddress(gpa.0))),
            Self::Write(buffer) => buffer
                .get(done..done + count)
                .map(|part| memory.write(part, GuestAddress(gpa.0))),
        };
        result.and_then(Result::ok).unwrap_or(0)
    }
}

/// Why an access failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AccessError {
    /// There is no such endpoint.
    #[error("endpoint {0} does not exist")]
    NoEndpoint(EndpointId),
    /// The endpoint has no such PASID.
    #[error("endpoint {0} has PASIDs of {1} bits")]
    NoPasid(EndpointId, u8),
    /// The endpoint cannot raise page requests.
    #[error("endpoint {0} cannot raise page requests")]
    NoPageRequests(EndpointId),
    /// The access goes beyond the last address.
    #[error("the access goes beyond the last address")]
    Wraps,
    /// The requester is attached to nothing that lets accesses through.
    #[error("the requester is blocked: no access to {0}")]
    Blocked(Iova),
    /// Nothing is mapped there.
    #[error("no translation for {0}")]
    Translation(Iova),
    /// What is mapped there does not allow the access.
    #[error("the mapping at {0} does not permit the access")]
    Permission(Iova),
    /// The translation leads to where there is no memory.
    #[error("no memory behind {0}")]
    NoMemory(Iova),
    /// A page request was answered with something other than SUCCESS.
    #[error("the page request for {0} was answered {1:?}")]
    PageRequest(Iova, PageResponseCode),
}

/// Where accesses of a requester go: [`crate::host::Attachment`] with the domain's table at hand.
#[derive(Clone)]
pub(super) enum View {
    Blocked,
    Bypass,
    Domain {
        id: DomainId,
        mappings: SharedMappings,
        page_requests: PageRequests,
    },
}

/// The views of an endpoint. A PASID that is not in the map is blocked, whatever the endpoint is: a PASID is
/// never in bypass by itself.
pub(super) struct Views {
    pub(super) plain: View,
    pub(super) pasids: BTreeMap<Pasid, View>,
}

impl Views {
    pub(super) fn get(&self, pasid: Option<Pasid>) -> &View {
        match pasid {
            None => &self.plain,
            Some(pasid) => self.pasids.get(&pasid).unwrap_or(&View::Blocked),
        }
    }
}

/// A software endpoint.
pub(super) struct Endpoint {
    pub(super) properties: EndpointProperties,
    /// Held for reading by every access in flight, so that changing an attachment waits for them; `None` once
    /// the endpoint is removed. Lock order: this, the mapping table, guest memory, the book.
    views: RwLock<Option<Views>>,
}

/// What one attempt at a chunk came to.
pub(super) enum Attempt {
    /// So many bytes were transferred.
    Moved(usize),
    /// A page request was raised; when it is answered, try again.
    Raised(PendingResponse),
}

/// Guest memory; held for reading by every access in flight.
pub(super) type SharedMemory = RwLock<GuestMemoryMmap>;

impl Endpoint {
    pub(super) fn new(properties: EndpointProperties) -> Self {
        Self {
            properties,
            views: RwLock::new(Some(Views {
                plain: View::Blocked,
                pasids: BTreeMap::new(),
            })),
        }
    }

    /// Whether it has the address space: every endpoint has the one without a PASID.
    pub(super) fn has_pasid(&self, pasid: Option<Pasid>) -> bool {
        let width = self.properties.pasid_width;
        pasid.is_none_or(|Pasid(pasid)| width != 0 && u64::from(pasid) >> width == 0)
    }

    pub(super) fn views(&self) -> RwLockReadGuard<'_, Option<Views>> {
        read(&self.views)
    }

    pub(super) fn views_mut(&self) -> RwLockWriteGuard<'_, Option<Views>> {
        self.views.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Transfers what is mapped from byte `done` on, up to a chunk. The locks are held until the bytes have moved: when
    /// UNMAP, DETACH or a change of memory returns, no access still uses what it removed.
    pub(super) fn attempt(
        &self,
        requester: Requester,
        iova: Iova,
        transfer: &mut Transfer<'_>,
        done: usize,
        memory: &SharedMemory,
        book: &Book,
    ) -> Result<Attempt, AccessError> {
        let views = self.views();
        let views = views
            .as_ref()
            .ok_or(AccessError::NoEndpoint(requester.endpoint))?;
        let left = transfer.len() - done;
        let access = transfer.access();
        let report = |reason, address| {
            book.fault(Fault {
                requester,
                reason,
                address: Some(address),
                access,
            });
        };
        let moved = match views.get(requester.pasid) {
            View::Blocked => {
                report(Reason::Domain, iova);
                return Err(AccessError::Blocked(iova));
            }
            View::Bypass => transfer.carry_out(&read(memory), Gpa(iova.0), done, left.min(CHUNK)),
            View::Domain {
                mappings,
                page_requests,
                ..
            } => match move_mapped(mappings, memory, iova, transfer, done) {
                Ok(moved) => moved,
                // The table is not locked any more: MAP would wait for the book.
                Err(found) => {
                    if *page_requests == PageRequests::Reported {
                        let page = PageRequest {
                            address: iova,
                            access,
                            length: u32::try_from(left).unwrap_or(u32::MAX),
                        };
                        return Ok(Attempt::Raised(book.raise(requester, vec![page])));
                    }
                    report(Reason::Mapping, iova);
                    return Err(match found {
                        Some(_) => AccessError::Permission(iova),
                        None => AccessError::Translation(iova),
                    });
                }
            },
        };
        if moved == 0 {
            report(Reason::Unknown, iova);
            return Err(AccessError::NoMemory(iova));
        }
        Ok(Attempt::Moved(moved))
    }
}

/// Moves what mappings that follow each other allow, up to a chunk; says how many bytes there was memory for. The error
/// is the mapping at the first byte that does not allow it, if there is one.
fn move_mapped(
    mappings: &SharedMappings,
    memory: &SharedMemory,
    iova: Iova,
    transfer: &mut Transfer<'_>,
    done: usize,
) -> Result<usize, Option<Mapping>> {
    let needed = transfer.needed();
    let wanted = (transfer.len() - done).min(CHUNK);
    let table = read(mappings);
    let mut mapping = match table.lookup(iova) {
        Some(mapping) if mapping.flags.contains(needed) => mapping,
        found => return Err(found),
    };
    let memory = read(memory);
    let mut moved = 0;
    loop {
        let at = Iova(iova.0 + moved as u64);
        let room = usize::try_from(mapping.range.last.0 - at.0).unwrap_or(usize::MAX);
        let count = (wanted - moved).min(room.saturating_add(1));
        let now = transfer.carry_out(&memory, mapping.translate(at), done + moved, count);
        moved += now;
        if now < count || moved == wanted {
            return Ok(moved);
        }
        // An access does not wrap: there is an address behind the mapping.
        mapping = match table.lookup(Iova(iova.0 + moved as u64)) {
            Some(next) if next.flags.contains(needed) => next,
            _ => return Ok(moved),
        };
    }
}

/// Nothing panics while it holds one of these locks, and if something did, what it guards is still whole.
pub(super) fn read<T>(lock: &RwLock<T>) -> RwLockReadGuard<'_, T> {
    lock.read().unwrap_or_else(PoisonError::into_inner)
}
