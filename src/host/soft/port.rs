// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A port: the only way to guest memory. Every agent of an endpoint, such as a DMA engine, has one.
//!
//! ```text
//! agent ── port: its caches, guest memory ── the bytes move
//!            │ miss                        ▲
//!            └── views, mapping table      └── UNMAP, ATTACH, DETACH, changes of memory, INVALIDATE: invalidate
//!                or the driver's table
//! ```
//!
//! An access holds its port's lock from the translation until its bytes have moved. An UNMAP, ATTACH or change of memory
//! first changes the table or the views, and then takes the lock of each port in turn to invalidate. So it has waited for
//! the access that may still use the old translation, and a later access finds only the new state. A hit takes no other
//! lock, and agents with ports of their own share no cache line.
//!
//! A table of the driver is walked under the port's lock too, and nowhere else. The driver has changed it before it sends
//! INVALIDATE, which takes the same locks: so it has waited for walks as well (X103), and so has the end of an attachment
//! (X87).
//!
//! While tables are held, the same lock makes sure of it: the hold comes first, the locks second, and an access that finds
//! the hold lets its lock go before it waits.
//!
//! There are two caches: the endpoint's own, which is only for accesses with ATS, and the IOMMU's for all others.
//!
//! `state`: what the host invalidates. `translate`: from an access to where it goes. `copy`: from memory to memory.
//! `walk`: copies through mappings that follow each other.

mod copy;
mod state;
mod translate;
mod walk;

use std::sync::Arc;

use crate::host::mapping::Mapping;
use crate::host::soft::access::{Access, AccessError, Denied, Transfer};
use crate::host::soft::cache::{CacheCounters, Cached};
use crate::host::soft::endpoint::{Endpoint, View, Views};
use crate::host::soft::events::{EventSource, PendingResponse};
use crate::host::soft::hold::{Hold, Released};
use crate::host::{Fault, PageRequest, PageRequests, Requester};
use crate::spec::{EndpointId, Iova, PageResponseCode, Pasid, Reason};

pub(super) use state::Ports;
#[cfg(test)]
pub(super) use translate::MAX_TURNS;
pub(crate) use translate::{Route, TableRoute};

use state::{Inner, PortState};

/// The most bytes transferred before the lock is let go: an UNMAP waits for no more than this, some ten
/// microseconds.
const CHUNK: usize = 64 << 10;

/// How often [`Port::access`] tries again after answers SUCCESS that brought it no further. Then it is a fault.
pub(super) const MAX_RETRIES: u32 = 100;

/// An agent's way to memory. Made by [`super::SoftHost::port`].
pub struct Port {
    endpoint: Arc<Endpoint>,
    events: Arc<EventSource>,
    ports: Arc<Ports>,
    state: Arc<PortState>,
}

impl Port {
    pub(super) fn new(
        id: EndpointId,
        endpoint: Arc<Endpoint>,
        events: &Arc<EventSource>,
        ports: &Arc<Ports>,
    ) -> Self {
        Self {
            endpoint,
            events: Arc::clone(events),
            ports: Arc::clone(ports),
            state: ports.add(id),
        }
    }

    /// Empties the caches, as an endpoint does with its own when its ATS is disabled.
    pub fn flush(&self) {
        self.state.clear();
    }

    /// Moves bytes `done ..` of `transfer`, the next of which is at `iova`, as far as one translation goes and no
    /// more than 64 KiB; says how many. It does not wait. [`Access::kinds`] has the direction of `transfer`.
    ///
    /// # Errors
    /// Why no byte was moved. The driver is not told: see [`Port::report`]. After [`Denied::Held`] the access waits for
    /// [`Port::released`].
    pub fn transfer(
        &self,
        access: Access,
        iova: Iova,
        transfer: &mut Transfer<'_>,
        done: usize,
    ) -> Result<usize, Denied> {
        let length = transfer.len() - done;
        let mut carry_out = |inner: &Inner, mapping: &Mapping| {
            let count = length.min(CHUNK).min(mapping.bytes_from(iova));
            transfer.carry_out(&inner.memory, mapping.translate(iova), done, count)
        };
        self.settled(|inner| {
            let mapping = self.translate_locked(inner, access, iova)?;
            let moved = carry_out(inner, &mapping);
            if moved != 0 {
                return Ok(moved);
            }
            // What was kept may lead to no memory, and the table elsewhere by now (X84).
            let mapping = self.translate_anew(inner, access, iova)?;
            match carry_out(inner, &mapping) {
                0 => Err(Denied::NoMemory),
                moved => Ok(moved),
            }
        })
    }

    fn check_pasid(&self, pasid: Option<Pasid>) -> Result<(), Denied> {
        match self.endpoint.has_pasid(pasid) {
            true => Ok(()),
            false => Err(Denied::NoPasid(self.endpoint.properties.pasid_width)),
        }
    }

    /// Moves all bytes of `transfer`, the first of which is at `iova`, without ATS. If a translation is missing and the
    /// driver has attached the requester with page requests, one is raised for the rest of the access, which goes on
    /// when that is answered. Otherwise the access is aborted, and the driver gets a fault report. While tables are held,
    /// an access through one waits.
    ///
    /// The future can be dropped: a page request that it has raised stays outstanding.
    ///
    /// # Errors
    /// Why and where the access was aborted. A part of the bytes may have moved, as on a bus.
    pub async fn access(
        &self,
        pasid: Option<Pasid>,
        iova: Iova,
        mut transfer: Transfer<'_>,
    ) -> Result<(), AccessError> {
        self.check_pasid(pasid)
            .map_err(|denied| AccessError::Denied(denied, iova))?;
        let length = transfer.len();
        if iova
            .0
            .checked_add((length as u64).saturating_sub(1))
            .is_none()
        {
            return Err(AccessError::Wraps);
        }
        let access = Access {
            pasid,
            kinds: transfer.direction(),
            translated: false,
        };
        let (mut done, mut retries) = (0, 0);
        while done < length {
            let at = Iova(iova.0 + done as u64);
            let denied = match self.transfer(access, at, &mut transfer, done) {
                Ok(moved) => {
                    (done, retries) = (done + moved, 0);
                    continue;
                }
                Err(Denied::Held) => {
                    self.released(pasid).await;
                    continue;
                }
                Err(denied) => denied,
            };
            let left = u32::try_from(length - done).unwrap_or(u32::MAX);
            let raised = match denied.is_recoverable() && retries < MAX_RETRIES {
                true => self.raise_missing(access, at, left),
                false => None,
            };
            let Some(response) = raised else {
                self.report(access, denied, at);
                return Err(AccessError::Denied(denied, at));
            };
            match response.await {
                PageResponseCode::Success => retries += 1,
                code => return Err(AccessError::PageRequest(at, code)),
            }
        }
        Ok(())
    }

    /// Waits until the accesses of a requester are not held: tables are not, or the requester is not attached to one.
    pub fn released(&self, pasid: Option<Pasid>) -> Released<'_> {
        Released::new(self, pasid)
    }

    pub(super) fn hold(&self) -> &Hold {
        &self.ports.hold
    }

    /// Whether accesses of a requester wait for the end of the hold.
    pub(super) fn is_held(&self, pasid: Option<Pasid>) -> bool {
        let views = self.endpoint.views();
        let view = views.as_ref().map(|views| views.get(pasid));
        self.hold().is_on() && view.is_some_and(View::is_table)
    }

    /// Asks for the page that an access has missed, if the driver wants page requests of the requester.
    fn raise_missing(&self, access: Access, iova: Iova, length: u32) -> Option<PendingResponse> {
        let page = PageRequest {
            address: iova,
            access: access.kinds,
            length,
        };
        let views = self.endpoint.views();
        match views.as_ref().map(|views| views.get(access.pasid)) {
            Some(View::Domain {
                page_requests: PageRequests::Reported,
                ..
            }) => Some(self.raise(access.pasid, vec![page], &views)),
            _ => None,
        }
    }

    /// Raises a group of page requests as it stands. It is answered INVALID_REQUEST at once if there is no translation to
    /// ask for: the requester is blocked (the driver gets a fault report too), in bypass, or was answered
    /// RESPONSE_FAILURE before and was not attached again since. A group without pages is answered SUCCESS at once.
    ///
    /// # Errors
    /// [`Denied::NoEndpoint`], [`Denied::NoPasid`] and [`Denied::NoPageRequests`].
    pub fn page_request(
        &self,
        pasid: Option<Pasid>,
        pages: Vec<PageRequest>,
    ) -> Result<PendingResponse, Denied> {
        self.check_pasid(pasid)?;
        let views = self.endpoint.views();
        let view = views.as_ref().ok_or(Denied::NoEndpoint)?.get(pasid);
        if !self.endpoint.properties.page_requests {
            return Err(Denied::NoPageRequests);
        }
        let Some(first) = pages.first().copied() else {
            return Ok(PendingResponse::ready(PageResponseCode::Success));
        };
        Ok(match view {
            View::Blocked => {
                self.events.fault(Fault {
                    requester: self.requester(pasid),
                    reason: Reason::Domain,
                    address: Some(first.address),
                    access: first.access,
                });
                PendingResponse::ready(PageResponseCode::InvalidRequest)
            }
            View::Bypass
            | View::Domain {
                page_requests: PageRequests::Off,
                ..
            } => PendingResponse::ready(PageResponseCode::InvalidRequest),
            View::Domain { .. } => self.raise(pasid, pages, &views),
        })
    }

    /// The views are locked until the group is among the events, where a later DETACH finds it.
    fn raise(
        &self,
        pasid: Option<Pasid>,
        pages: Vec<PageRequest>,
        _views: &Option<Views>,
    ) -> PendingResponse {
        self.events.raise(self.requester(pasid), pages)
    }

    /// Tells the driver of an access that was given up.
    pub fn report(&self, access: Access, denied: Denied, iova: Iova) {
        if let Some(reason) = denied.reason() {
            self.events.fault(Fault {
                requester: self.requester(access.pasid),
                reason,
                address: Some(iova),
                access: access.kinds,
            });
        }
    }

    /// What the endpoint's own cache did.
    pub fn counters(&self) -> CacheCounters {
        self.state.lock().atc.counters
    }

    /// What is in the endpoint's own cache.
    pub fn cached(&self) -> Vec<Cached> {
        self.state.lock().atc.entries().collect()
    }

    fn requester(&self, pasid: Option<Pasid>) -> Requester {
        Requester {
            endpoint: self.state.endpoint,
            pasid,
        }
    }
}

impl Drop for Port {
    fn drop(&mut self) {
        self.ports.remove(&self.state);
    }
}
