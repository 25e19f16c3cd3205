// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! When a page request comes by: a host in front of another, which notes the time of each call.

use std::os::fd::RawFd;
use std::sync::Arc;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use vhost_device_iommu::host::mapping::{IovaRange, Mapping};
use vhost_device_iommu::host::{
    Answer, Attachment, Cookie, EndpointProperties, Host, HostError, HostEvent, Limits,
    MemoryError, MemoryRegion, Requester, Translations,
};
use vhost_device_iommu::spec::{DomainId, EndpointId};
use vm_memory::GuestMemoryMmap;

/// Nanoseconds since the first call.
pub fn now() -> u64 {
    static START: LazyLock<Instant> = LazyLock::new(Instant::now);
    START.elapsed().as_nanos() as u64
}

/// The time of the latest.
#[derive(Default)]
pub struct Stamp(AtomicU64);

impl Stamp {
    pub fn set(&self) {
        self.0.store(now(), Ordering::Release);
    }

    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Acquire)
    }
}

/// Another host, and when it was called.
pub struct TimedHost<H> {
    inner: Arc<H>,
    /// A page request was taken out of the host's queue.
    pub taken: Stamp,
    /// The host was told an answer.
    pub answering: Stamp,
    /// It had passed the answer on.
    pub answered: Stamp,
}

impl<H> TimedHost<H> {
    pub fn new(inner: Arc<H>) -> Self {
        Self {
            inner,
            taken: Stamp::default(),
            answering: Stamp::default(),
            answered: Stamp::default(),
        }
    }
}

impl<H: Host> Host for TimedHost<H> {
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
    fn invalidate(&self, domain: DomainId, range: IovaRange) -> Result<(), HostError> {
        self.inner.invalidate(domain, range)
    }
    fn joins_unmaps(&self) -> bool {
        self.inner.joins_unmaps()
    }
    fn update_memory(
        &self,
        memory: &GuestMemoryMmap,
        removed: &[MemoryRegion],
        added: &[MemoryRegion],
    ) -> Result<(), Vec<MemoryError>> {
        self.inner.update_memory(memory, removed, added)
    }
    fn event_fds(&self) -> Vec<RawFd> {
        self.inner.event_fds()
    }
    fn take_events(&self, sink: &mut dyn FnMut(HostEvent)) {
        self.inner.take_events(&mut |event| {
            self.taken.set();
            sink(event);
        });
    }
    fn respond(&self, cookie: Cookie, answer: Answer) -> Result<(), HostError> {
        self.answering.set();
        let result = self.inner.respond(cookie, answer);
        self.answered.set();
        result
    }
    fn remove_endpoint(&self, endpoint: EndpointId) {
        self.inner.remove_endpoint(endpoint);
    }
}
