// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The software host: an IOMMU inside the process.
//!
//! ```text
//! agent ── port ── views (per endpoint) ── mapping table (the device's own) ── guest memory
//!            │ miss
//!            └── events ── event descriptor ── device ── driver ── respond ── the access tries again
//! ```
//!
//! Translation reads the device's mapping table; there is no copy, so MAP has nothing to do here, and UNMAP invalidates.
//! Every access goes through a [`Port`], which keeps translations as an endpoint with ATS and an IOMMU do. An access holds
//! its port's lock while its bytes move, and accesses of different ports never wait for each other.
//!
//! An access that waits for the driver is a future: no lock can be held across it, and a thousand waiting accesses need no
//! thousand threads. [`block_on`] is for callers that have a thread to spare.
//!
//! `access`: the words of an access. `port`: the way to memory. `cache`: its translations. `endpoint`: properties and
//! attachments. `events`: faults and page requests on their way to the device.
#![forbid(unsafe_code)]

mod access;
mod cache;
mod endpoint;
mod events;
mod port;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::os::fd::RawFd;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::thread::Thread;

use parking_lot::{Mutex, RwLock};
use vm_memory::GuestMemoryMmap;

use crate::host::mapping::{IovaRange, Mapping, SharedMappings};
use crate::host::{
    Answer, Attachment, Cookie, EndpointProperties, Host, HostError, HostEvent, Limits,
    MemoryError, MemoryRegion, Owner, Requester,
};
use crate::spec::{DomainId, EndpointId, PageResponseCode, PasidFlags};

pub use access::{Access, AccessError, Denied, Transfer};
pub use cache::{CacheCounters, Cached};
pub use events::PendingResponse;
pub use port::Port;

use endpoint::{Endpoint, View};
use events::EventSource;
use port::PortState;

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
    /// Guest memory for ports that are made; each keeps its own copy of the map.
    memory: Mutex<GuestMemoryMmap>,
    /// Held while a port is made, so that it misses no change of memory.
    ports: RwLock<Vec<Arc<PortState>>>,
    events: EventSource,
}

impl SoftHost {
    /// A host without endpoints and memory.
    ///
    /// # Errors
    /// The kernel's, if it has no eventfd to give.
    pub fn new() -> std::io::Result<Self> {
        Ok(Self {
            endpoints: RwLock::default(),
            domains: Mutex::default(),
            memory: Mutex::new(GuestMemoryMmap::new()),
            ports: RwLock::default(),
            events: EventSource::new()?,
        })
    }

    /// Adds an endpoint; it is blocked.
    ///
    /// # Errors
    /// [`HostError::Internal`] if there is one with this ID.
    pub fn add_endpoint(
        &self,
        id: EndpointId,
        properties: EndpointProperties,
    ) -> Result<(), HostError> {
        let mut endpoints = self.endpoints.write();
        if endpoints.contains_key(&id) {
            return Err(HostError::Internal(format!("endpoint {id} exists already")));
        }
        endpoints.insert(id, Arc::new(Endpoint::new(properties)));
        Ok(())
    }

    /// Makes a port for an agent of an endpoint. It serves until it is dropped; when the endpoint is removed, it
    /// denies everything.
    ///
    /// # Errors
    /// [`HostError::NoEndpoint`].
    pub fn port(self: &Arc<Self>, id: EndpointId) -> Result<Port, HostError> {
        let endpoint = self.find(id).ok_or(HostError::NoEndpoint(id))?;
        Ok(self.port_of(id, endpoint))
    }

    /// The port that single accesses share, such as those of the control socket: however many of them wait for the guest,
    /// they have one cache.
    ///
    /// # Errors
    /// [`HostError::NoEndpoint`].
    pub fn shared_port(self: &Arc<Self>, id: EndpointId) -> Result<Arc<Port>, HostError> {
        let endpoint = self.find(id).ok_or(HostError::NoEndpoint(id))?;
        let mut shared = endpoint.shared_port.lock();
        if let Some(port) = shared.upgrade() {
            return Ok(port);
        }
        let port = Arc::new(self.port_of(id, Arc::clone(&endpoint)));
        *shared = Arc::downgrade(&port);
        Ok(port)
    }

    fn port_of(self: &Arc<Self>, id: EndpointId, endpoint: Arc<Endpoint>) -> Port {
        let mut ports = self.ports.write();
        let state = Arc::new(PortState::new(id, self.memory.lock().clone()));
        ports.push(Arc::clone(&state));
        Port::new(Arc::clone(self), endpoint, state)
    }

    fn forget_port(&self, state: &Arc<PortState>) {
        self.ports.write().retain(|port| !Arc::ptr_eq(port, state));
    }

    fn find(&self, id: EndpointId) -> Option<Arc<Endpoint>> {
        self.endpoints.read().get(&id).cloned()
    }

    fn ports_of(&self, endpoint: EndpointId) -> Vec<Arc<PortState>> {
        let ports = self.ports.read();
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
                mappings: self.domains.lock().get(&domain).cloned().ok_or_else(|| {
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
        self.domains.lock().insert(domain, mappings);
        Ok(())
    }

    fn destroy_domain(&self, domain: DomainId) {
        self.domains.lock().remove(&domain);
    }

    fn attach(&self, requester: Requester, to: Attachment) -> Result<(), HostError> {
        let id = requester.endpoint;
        let endpoint = self.find(id).ok_or(HostError::NoEndpoint(id))?;
        let new = self.view(to)?;
        {
            // An access that looks its translation up later sees the new view, and cannot have raised a group yet: every
            // group of the requester belongs to the old one.
            let mut views = endpoint.views_mut();
            let views = views.as_mut().ok_or(HostError::NoEndpoint(id))?;
            if views.get(requester.pasid).is_same(&new) {
                return Ok(());
            }
            views.set(requester.pasid, new);
            self.events.withdraw(requester);
        }
        // Waits for the accesses in flight.
        for port in self.ports_of(id) {
            port.invalidate_requester(requester.pasid);
        }
        Ok(())
    }

    /// Nothing to do: accesses read the device's table.
    fn map(&self, _domain: DomainId, _mapping: &Mapping) -> Result<(), HostError> {
        Ok(())
    }

    /// Ports that are used lose what they keep. The lock of each is held by its access in flight, if there is one.
    fn unmap(&self, domain: DomainId, range: IovaRange) -> Result<(), HostError> {
        port::publish_change();
        for port in self.ports.read().iter().filter(|port| port.is_used()) {
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
        *self.memory.lock() = memory.clone();
        for port in self.ports.read().iter() {
            port.set_memory(memory.clone());
        }
        Ok(())
    }

    fn event_fds(&self) -> Vec<RawFd> {
        vec![self.events.event_fd()]
    }

    fn take_events(&self, sink: &mut dyn FnMut(HostEvent)) {
        self.events.take(sink);
    }

    fn respond(&self, cookie: Cookie, answer: Answer) -> Result<(), HostError> {
        let code = match answer {
            Answer::Success => PageResponseCode::Success,
            Answer::Invalid => PageResponseCode::InvalidRequest,
            Answer::ResponseFailure => PageResponseCode::ResponseFailure,
        };
        self.events.respond(cookie, code)
    }

    fn remove_endpoint(&self, endpoint: EndpointId) {
        let removed = self.endpoints.write().remove(&endpoint);
        if let Some(removed) = removed {
            *removed.views_mut() = None;
            for port in self.ports_of(endpoint) {
                port.invalidate_all();
            }
            self.events.withdraw_endpoint(endpoint);
        }
    }
}

/// Locks a table of the device. Nothing panics while it holds this lock, and if something did, the table is still whole.
fn read<T>(lock: &std::sync::RwLock<T>) -> std::sync::RwLockReadGuard<'_, T> {
    lock.read()
        .unwrap_or_else(std::sync::PoisonError::into_inner)
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
