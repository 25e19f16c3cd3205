// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A host in front of another: a test or a benchmark sees calls on their way.

use std::os::fd::RawFd;
use std::sync::Arc;

use vhost_device_iommu::host::mapping::{IovaRange, Mapping};
use vhost_device_iommu::host::{
    Answer, Attachment, Cookie, EndpointProperties, Host, HostError, HostEvent, Limits,
    MemoryError, MemoryRegion, Requester, Translations,
};
use vhost_device_iommu::spec::{DomainId, EndpointId};
use vm_memory::GuestMemoryMmap;

/// Is called when a call passes by, on the thread of the call.
pub trait Watch: Send + Sync {
    /// Guest memory changes, and the host has not been told yet.
    fn memory_changes(&self) {}
    /// An event was taken out of the host's queue.
    fn taken(&self) {}
    /// The host is about to be told an answer.
    fn answering(&self) {}
    /// The host has passed the answer on.
    fn answered(&self) {}
}

/// A host, and what watches the calls to it.
pub struct WatchedHost<H, W> {
    inner: Arc<H>,
    pub watch: W,
}

impl<H, W: Default> WatchedHost<H, W> {
    pub fn new(inner: Arc<H>) -> Self {
        Self {
            inner,
            watch: W::default(),
        }
    }
}

impl<H: Host, W: Watch> Host for WatchedHost<H, W> {
    fn limits(&self) -> Limits {
        self.inner.limits()
    }
    fn has_endpoint(&self, endpoint: EndpointId) -> bool {
        self.inner.has_endpoint(endpoint)
    }
    fn properties(&self, endpoint: EndpointId) -> Option<EndpointProperties> {
        self.inner.properties(endpoint)
    }
    fn create_domain(&self, domain: DomainId, by: Translations) -> Result<(), HostError> {
        self.inner.create_domain(domain, by)
    }
    fn destroy_domain(&self, domain: DomainId) {
        self.inner.destroy_domain(domain);
    }
    fn attach(&self, requester: Requester, to: Attachment) -> Result<(), HostError> {
        self.inner.attach(requester, to)
    }
    fn map(&self, domain: DomainId, mapping: &Mapping) -> Result<(), HostError> {
        self.inner.map(domain, mapping)
    }
    fn unmap(
        &self,
        domain: DomainId,
        range: IovaRange,
        removed: &[Mapping],
    ) -> Result<(), HostError> {
        self.inner.unmap(domain, range, removed)
    }
    fn invalidate(&self, domain: DomainId, ranges: &[IovaRange]) -> Result<(), HostError> {
        self.inner.invalidate(domain, ranges)
    }
    fn hold_tables(&self) {
        self.inner.hold_tables();
    }
    fn release_tables(&self) {
        self.inner.release_tables();
    }
    fn joins_requests(&self) -> bool {
        self.inner.joins_requests()
    }
    fn update_memory(
        &self,
        memory: &GuestMemoryMmap,
        removed: &[MemoryRegion],
        added: &[MemoryRegion],
    ) -> Result<(), Vec<MemoryError>> {
        self.watch.memory_changes();
        self.inner.update_memory(memory, removed, added)
    }
    fn event_fds(&self) -> Vec<RawFd> {
        self.inner.event_fds()
    }
    fn take_events(&self, sink: &mut dyn FnMut(HostEvent)) {
        self.inner.take_events(&mut |event| {
            self.watch.taken();
            sink(event);
        });
    }
    fn respond(&self, cookie: Cookie, answer: Answer) -> Result<(), HostError> {
        self.watch.answering();
        let result = self.inner.respond(cookie, answer);
        self.watch.answered();
        result
    }
    fn remove_endpoint(&self, endpoint: EndpointId) {
        self.inner.remove_endpoint(endpoint);
    }
}
