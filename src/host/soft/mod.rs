// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The software host: an IOMMU inside the process.
//!
//! ```text
//! agent ── port ── views (per endpoint) ── mapping table (the device's own), or table of the driver ── guest memory
//!            │ miss
//!            └── events ── event descriptor ── device ── driver ── respond ── the access tries again
//! ```
//!
//! Translation reads the device's mapping table; there is no copy, so MAP has nothing to do here, and UNMAP invalidates.
//! Or it reads a page table of the driver in guest memory: then INVALIDATE does.
//! Every access goes through a [`Port`], which keeps translations as an endpoint with ATS and an IOMMU do. An access holds
//! its port's lock while its bytes move, and accesses of different ports never wait for each other.
//!
//! An access that waits for the driver is a future: no lock can be held across it, and a thousand waiting accesses need no
//! thousand threads. [`block_on`] is for callers that have a thread to spare.
//!
//! `access`: the words of an access. `port`: the way to memory. `cache`: its translations. `table`: the walk of a table of
//! the driver. `endpoint`: properties and attachments. `hold`: accesses that wait while no table is read. `events`: faults
//! and page requests on their way to the device.
#![forbid(unsafe_code)]

mod access;
mod cache;
mod endpoint;
mod events;
#[cfg(test)]
pub(crate) mod guest_table;
mod hold;
mod port;
mod table;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::RawFd;
use std::pin::pin;
use std::sync::{Arc, Weak};
use std::task::{Context, Poll, Wake, Waker};
use std::thread::Thread;

use parking_lot::{Mutex, RwLock};
use vm_memory::GuestMemoryMmap;

use crate::host::mapping::{IovaRange, Mapping};
use crate::host::table::TableSupport;
use crate::host::{
    Answer, Attachment, Cookie, EndpointProperties, Host, HostError, HostEvent, Limits,
    MemoryError, MemoryRegion, Owner, Requester, Translations,
};
use crate::spec::{DomainId, EndpointId, PageResponseCode, PasidFlags, TableFormat};

pub use access::{Access, AccessError, Denied, Transfer};
pub use cache::{CacheCounters, Cached};
pub use events::PendingResponse;
pub use hold::Released;
pub use port::Port;
pub(crate) use port::{Route, TableRoute};
#[cfg(any(fuzzing, test))]
pub(crate) use table::{Needed, Page, WalkError, trace, walk};

use endpoint::{Endpoint, Source, View};
use events::EventSource;
use port::Ports;

/// Width of a PASID: all that PCI has.
const PASID_WIDTH: u8 = 20;

/// What a software endpoint can do unless told otherwise.
pub fn default_properties() -> EndpointProperties {
    EndpointProperties {
        page_requests: true,
        pasid_width: PASID_WIDTH,
        pasid_flags: PasidFlags::EXEC | PasidFlags::PRIVILEGED,
        reserved: Vec::new(),
        tables: supported_tables(),
        owner: Owner::Host,
    }
}

/// Formats of tables that walks know: all of X86_64, and all of Arm64 that draft 2 has, pages and blocks.
fn supported_tables() -> Vec<TableSupport> {
    let sizes = |bits: &[u32]| bits.iter().map(|bits| 1 << bits).sum();
    vec![
        TableSupport {
            format: TableFormat::X86_64,
            input_bits: 57,
            output_bits: 52,
            page_sizes: sizes(&[12, 21, 30]),
        },
        TableSupport {
            format: TableFormat::Arm64,
            input_bits: 48,
            output_bits: 48,
            // Granules of 4, 16 and 64 KiB, and the blocks of each.
            page_sizes: sizes(&[12, 14, 16, 21, 25, 29, 30]),
        },
    ]
}

/// The software host.
pub struct SoftHost {
    endpoints: RwLock<BTreeMap<EndpointId, Arc<Endpoint>>>,
    domains: Mutex<BTreeMap<DomainId, Source>>,
    ports: Arc<Ports>,
    /// Those that [`SoftHost::shared_port`] hands out, as long as they are in use.
    shared_ports: Mutex<BTreeMap<EndpointId, Weak<Port>>>,
    events: Arc<EventSource>,
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
            ports: Arc::default(),
            shared_ports: Mutex::default(),
            events: Arc::new(EventSource::new()?),
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
    pub fn port(&self, id: EndpointId) -> Result<Port, HostError> {
        let endpoint = self.find(id).ok_or(HostError::NoEndpoint(id))?;
        Ok(Port::new(id, endpoint, &self.events, &self.ports))
    }

    /// The port that single accesses share, such as those of the control socket: however many of them wait for the guest,
    /// they have one cache.
    ///
    /// # Errors
    /// [`HostError::NoEndpoint`].
    pub fn shared_port(&self, id: EndpointId) -> Result<Arc<Port>, HostError> {
        // Locked before the endpoint is found: its removal comes here behind it.
        let mut shared = self.shared_ports.lock();
        if let Some(port) = shared.get(&id).and_then(Weak::upgrade) {
            return Ok(port);
        }
        let port = Arc::new(self.port(id)?);
        shared.insert(id, Arc::downgrade(&port));
        Ok(port)
    }

    /// How many accesses wait for the release of tables.
    #[cfg(test)]
    pub(crate) fn held_accesses(&self) -> usize {
        self.ports.hold.waiting()
    }

    fn find(&self, id: EndpointId) -> Option<Arc<Endpoint>> {
        self.endpoints.read().get(&id).cloned()
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
                by: self.domains.lock().get(&domain).cloned().ok_or_else(|| {
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

    fn create_domain(&self, domain: DomainId, by: Translations) -> Result<(), HostError> {
        self.domains.lock().insert(domain, by.into());
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
        self.ports.invalidate_requester(requester);
        // Those that are held look again.
        self.ports.hold.wake();
        Ok(())
    }

    /// Nothing to do: accesses read the device's table.
    fn map(&self, _domain: DomainId, _mapping: &Mapping) -> Result<(), HostError> {
        Ok(())
    }

    /// Ports that are used lose what they keep. The lock of each is held by its access in flight, if there is one.
    fn unmap(&self, domain: DomainId, range: IovaRange, _: &[Mapping]) -> Result<(), HostError> {
        self.ports.invalidate_range(domain, range);
        Ok(())
    }

    /// As an UNMAP, but for what the driver changed in its own table.
    fn invalidate(&self, domain: DomainId, ranges: &[IovaRange]) -> Result<(), HostError> {
        for &range in ranges {
            self.ports.invalidate_table(domain, range);
        }
        Ok(())
    }

    fn hold_tables(&self) {
        let tables: BTreeSet<DomainId> = {
            let domains = self.domains.lock();
            let tables = domains.iter().filter(|(_, by)| by.is_table());
            tables.map(|(&id, _)| id).collect()
        };
        self.ports.hold_tables(&tables);
    }

    fn release_tables(&self) {
        self.ports.hold.end();
    }

    fn joins_requests(&self) -> bool {
        false
    }

    fn update_memory(
        &self,
        memory: &GuestMemoryMmap,
        _removed: &[MemoryRegion],
        _added: &[MemoryRegion],
    ) -> Result<(), Vec<MemoryError>> {
        self.ports.set_memory(memory);
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
            self.shared_ports.lock().remove(&endpoint);
            self.ports.invalidate_endpoint(endpoint);
            self.ports.hold.wake();
            self.events.withdraw_endpoint(endpoint);
        }
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
