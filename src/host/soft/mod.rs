// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The software host: an IOMMU inside the process.
//!
//! ```text
//! access ── views (per endpoint) ── mapping table (the device's own) ── guest memory
//!    │ miss
//!    └── book ── event descriptor ── device ── driver ── respond ── the access tries again
//! ```
//!
//! Translation reads the device's mapping table; there is no copy, so MAP and UNMAP have nothing to do here.
//! An access holds three locks for reading while its bytes move: its endpoint's views, the table, guest memory.
//! Whoever takes something away takes the same lock for writing, and so waits for the accesses that use it.
//! Accesses never wait for each other.
//!
//! A [`Port`] is for agents that access memory all the time: it keeps translations, as an endpoint with ATS and an IOMMU
//! do, and is invalidated by whoever takes one away.
//!
//! Waiting for the driver is a future: no lock can be held across it, and a thousand waiting accesses need no
//! thousand threads. [`block_on`] is for callers that have a thread to spare.
#![forbid(unsafe_code)]

mod access;
mod book;
mod cache;
mod copy;
mod port;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::os::fd::RawFd;
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::task::{Context, Poll, Wake, Waker};
use std::thread::Thread;

use vm_memory::GuestMemoryMmap;

use crate::host::mapping::{IovaRange, Mapping, SharedMappings};
use crate::host::{
    Answer, Attachment, Cookie, EndpointProperties, Fault, Host, HostError, HostEvent, Limits,
    MemoryError, MemoryRegion, Owner, PageRequest, PageRequests, Requester,
};
use crate::spec::{DomainId, EndpointId, Iova, PageResponseCode, PasidFlags, Reason};

pub use access::{AccessError, Transfer};
pub use book::PendingResponse;
pub use cache::{CacheCounters, Cached};
pub use port::{Access, Denied, Port};

use access::{Attempt, Endpoint, SharedMemory, View, read};
use book::Book;
use port::PortState;

/// How often an access tries again after answers SUCCESS that brought it no further. Then it is a fault.
const MAX_RETRIES: u32 = 100;

/// Width of a PASID: all that PCI has.
const PASID_WIDTH: u8 = 20;

/// What a software endpoint can do unless told otherwise.
pub fn default_properties() -> EndpointProperties {
    EndpointProperties {
        page_requests: true,
        pasid_width: PASID_WIDTH,
        pasid_flags: PasidFlags::EXEC | PasidFlags::PRIVILEGED,
        reserved: Vec::new(),
        owner: Owner::Host,
    }
}

/// The software host.
pub struct SoftHost {
    endpoints: RwLock<BTreeMap<EndpointId, Arc<Endpoint>>>,
    domains: Mutex<BTreeMap<DomainId, SharedMappings>>,
    memory: SharedMemory,
    /// Held while a port is made, so that it misses no change of memory.
    ports: RwLock<Vec<Arc<PortState>>>,
    book: Book,
}

impl SoftHost {
    /// A host without endpoints and memory. Fails when the process is out of file descriptors.
    pub fn new() -> std::io::Result<Self> {
        Ok(Self {
            endpoints: RwLock::default(),
            domains: Mutex::default(),
            memory: RwLock::new(GuestMemoryMmap::new()),
            ports: RwLock::default(),
            book: Book::new()?,
        })
    }

    /// Adds an endpoint; it is blocked. One that exists already is an error.
    pub fn add_endpoint(
        &self,
        id: EndpointId,
        properties: EndpointProperties,
    ) -> Result<(), HostError> {
        let mut endpoints = self
            .endpoints
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        if endpoints.contains_key(&id) {
            return Err(HostError::Internal(format!("endpoint {id} exists already")));
        }
        endpoints.insert(id, Arc::new(Endpoint::new(properties)));
        Ok(())
    }

    /// Makes a port for an agent of an endpoint. It serves until it is dropped; when the endpoint is removed, it
    /// denies everything.
    pub fn port(self: &Arc<Self>, id: EndpointId) -> Result<Port, AccessError> {
        let endpoint = self.find(id).ok_or(AccessError::NoEndpoint(id))?;
        let mut ports = self.ports.write().unwrap_or_else(PoisonError::into_inner);
        let state = Arc::new(PortState::new(id, read(&self.memory).clone()));
        ports.push(Arc::clone(&state));
        Ok(Port::new(Arc::clone(self), endpoint, state))
    }

    fn forget_port(&self, state: &Arc<PortState>) {
        let mut ports = self.ports.write().unwrap_or_else(PoisonError::into_inner);
        ports.retain(|port| !Arc::ptr_eq(port, state));
    }

    /// Carries out an access of a requester. Where its attachment reports page requests, a missing
    /// translation raises one and the access goes on when it is answered; else it fails, and the driver gets a
    /// fault report. An access that fails may have moved a part of its bytes, as on a bus.
    pub async fn access(
        &self,
        requester: Requester,
        iova: Iova,
        mut transfer: Transfer<'_>,
    ) -> Result<(), AccessError> {
        let endpoint = self.requester(requester)?;
        let length = transfer.len();
        let Some(beyond_first) = length.checked_sub(1) else {
            return Ok(());
        };
        iova.0
            .checked_add(beyond_first as u64)
            .ok_or(AccessError::Wraps)?;
        let mut done = 0;
        let mut retries = 0;
        while done < length {
            let at = Iova(iova.0 + done as u64);
            let attempt =
                endpoint.attempt(requester, at, &mut transfer, done, &self.memory, &self.book)?;
            match attempt {
                Attempt::Moved(count) => {
                    done += count;
                    retries = 0;
                }
                Attempt::Raised(response) => match response.await {
                    PageResponseCode::Success if retries < MAX_RETRIES => retries += 1,
                    PageResponseCode::Success => {
                        self.book.fault(Fault {
                            requester,
                            reason: Reason::Mapping,
                            address: Some(at),
                            access: transfer.access(),
                        });
                        return Err(AccessError::Translation(at));
                    }
                    code => return Err(AccessError::PageRequest(at, code)),
                },
            }
        }
        Ok(())
    }

    /// Raises a group of page requests as it stands. Without a translation to ask for it is answered at once:
    /// INVALID_REQUEST for a requester that is blocked (with a fault report) or in bypass, RESPONSE_FAILURE after
    /// a RESPONSE_FAILURE.
    pub fn page_request(
        &self,
        requester: Requester,
        pages: Vec<PageRequest>,
    ) -> Result<PendingResponse, AccessError> {
        let endpoint = self.requester(requester)?;
        if !endpoint.properties.page_requests {
            return Err(AccessError::NoPageRequests(requester.endpoint));
        }
        let Some(first) = pages.first().copied() else {
            return Ok(PendingResponse::ready(PageResponseCode::Success));
        };
        // The lock is held until the group is in the book, where a later DETACH finds it.
        let views = endpoint.views();
        let views = views
            .as_ref()
            .ok_or(AccessError::NoEndpoint(requester.endpoint))?;
        Ok(match views.get(requester.pasid) {
            View::Blocked => {
                self.book.fault(Fault {
                    requester,
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
            View::Domain { .. } => self.book.raise(requester, pages),
        })
    }

    fn find(&self, id: EndpointId) -> Option<Arc<Endpoint>> {
        self.endpoints
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .get(&id)
            .cloned()
    }

    fn requester(&self, requester: Requester) -> Result<Arc<Endpoint>, AccessError> {
        let id = requester.endpoint;
        let endpoint = self.find(id).ok_or(AccessError::NoEndpoint(id))?;
        if !endpoint.has_pasid(requester.pasid) {
            return Err(AccessError::NoPasid(id, endpoint.properties.pasid_width));
        }
        Ok(endpoint)
    }

    fn ports_of(&self, endpoint: EndpointId) -> Vec<Arc<PortState>> {
        let ports = read(&self.ports);
        let of = ports.iter().filter(|port| port.endpoint == endpoint);
        of.cloned().collect()
    }

    fn view(&self, to: Attachment) -> Result<View, HostError> {
        Ok(match to {
            Attachment::Blocked => View::Blocked,
            Attachment::Bypass => View::Bypass,
            Attachment::Domain {
                domain,
                page_requests,
            } => View::Domain {
                id: domain,
                mappings: self
                    .domains
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .get(&domain)
                    .cloned()
                    .ok_or_else(|| {
                        HostError::Internal(format!("domain {domain} was never made"))
                    })?,
                page_requests,
            },
        })
    }
}

impl Host for SoftHost {
    fn limits(&self) -> Limits {
        Limits {
            page_size_mask: !0xfff,
            input_range: IovaRange::ALL,
        }
    }

    fn has_endpoint(&self, endpoint: EndpointId) -> bool {
        self.find(endpoint).is_some()
    }

    fn properties(&self, endpoint: EndpointId) -> Option<EndpointProperties> {
        self.find(endpoint).map(|e| e.properties.clone())
    }

    fn create_domain(&self, domain: DomainId, mappings: SharedMappings) -> Result<(), HostError> {
        self.domains
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(domain, mappings);
        Ok(())
    }

    fn destroy_domain(&self, domain: DomainId) {
        self.domains
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(&domain);
    }

    fn attach(&self, requester: Requester, to: Attachment) -> Result<(), HostError> {
        let id = requester.endpoint;
        let endpoint = self.find(id).ok_or(HostError::NoEndpoint(id))?;
        let new = self.view(to)?;
        {
            // Waits for the accesses in flight. Those that come later see the new view, and none of them can
            // have a group in the book yet: whatever is there for the requester belongs to the old one.
            let mut views = endpoint.views_mut();
            let views = views.as_mut().ok_or(HostError::NoEndpoint(id))?;
            if same(views.get(requester.pasid), &new) {
                return Ok(());
            }
            match (requester.pasid, new) {
                (None, new) => views.plain = new,
                (Some(pasid), View::Blocked) => {
                    views.pasids.remove(&pasid);
                }
                (Some(pasid), new) => {
                    views.pasids.insert(pasid, new);
                }
            }
            self.book.withdraw(requester);
        }
        for port in self.ports_of(id) {
            port.invalidate_requester(requester.pasid);
        }
        Ok(())
    }

    /// Nothing to do: accesses read the device's table.
    fn map(&self, _domain: DomainId, _mapping: &Mapping) -> Result<(), HostError> {
        Ok(())
    }

    /// An access without a port holds the table's lock for as long as it uses a translation, so the device has
    /// waited for it. Ports that are used lose what they keep.
    fn unmap(&self, domain: DomainId, range: IovaRange) -> Result<(), HostError> {
        port::publish_change();
        for port in read(&self.ports).iter().filter(|port| port.is_used()) {
            port.invalidate_range(domain, range);
        }
        Ok(())
    }

    fn joins_unmaps(&self) -> bool {
        false
    }

    fn update_memory(
        &self,
        memory: &GuestMemoryMmap,
        _removed: &[MemoryRegion],
        _added: &[MemoryRegion],
    ) -> Result<(), Vec<MemoryError>> {
        let memory = memory.clone();
        *self.memory.write().unwrap_or_else(PoisonError::into_inner) = memory.clone();
        for port in read(&self.ports).iter() {
            port.set_memory(memory.clone());
        }
        Ok(())
    }

    fn event_fds(&self) -> Vec<RawFd> {
        vec![self.book.event_fd()]
    }

    fn take_events(&self, sink: &mut dyn FnMut(HostEvent)) {
        self.book.take(sink);
    }

    fn respond(&self, cookie: Cookie, answer: Answer) -> Result<(), HostError> {
        let code = match answer {
            Answer::Success => PageResponseCode::Success,
            Answer::Invalid => PageResponseCode::InvalidRequest,
            Answer::ResponseFailure => PageResponseCode::ResponseFailure,
        };
        self.book.respond(cookie, code)
    }

    fn remove_endpoint(&self, endpoint: EndpointId) {
        let removed = self
            .endpoints
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(&endpoint);
        if let Some(removed) = removed {
            *removed.views_mut() = None;
            for port in self.ports_of(endpoint) {
                port.invalidate_all();
            }
            self.book.withdraw_endpoint(endpoint);
        }
    }
}

/// Whether moving from one view to the other changes nothing.
fn same(old: &View, new: &View) -> bool {
    match (old, new) {
        (View::Blocked, View::Blocked) | (View::Bypass, View::Bypass) => true,
        (
            View::Domain {
                id,
                mappings,
                page_requests,
            },
            View::Domain {
                id: new_id,
                mappings: new_mappings,
                page_requests: new_requests,
            },
        ) => {
            // A domain that was dropped and made again under its old number is another one.
            id == new_id && Arc::ptr_eq(mappings, new_mappings) && page_requests == new_requests
        }
        _ => false,
    }
}

/// Wakes a thread that is parked until a future can go on, as in [`block_on`].
pub(crate) struct ThreadWaker(Thread);

impl ThreadWaker {
    /// For a thread.
    pub(crate) fn new(thread: Thread) -> Self {
        Self(thread)
    }
}

impl Wake for ThreadWaker {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

/// Waits on this thread until the future is ready.
pub fn block_on<F: Future>(future: F) -> F::Output {
    let mut future = pin!(future);
    // One waker per thread, so that an access that hits allocates nothing.
    thread_local! {
        static WAKER: Waker = Waker::from(Arc::new(ThreadWaker::new(std::thread::current())));
    }
    WAKER.with(|waker| {
        let mut context = Context::from_waker(waker);
        loop {
            match future.as_mut().poll(&mut context) {
                Poll::Ready(output) => return output,
                Poll::Pending => std::thread::park(),
            }
        }
    })
}
