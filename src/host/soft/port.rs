// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A port: the way to memory of one agent of an endpoint, such as a DMA engine.
//!
//! ```text
//! agent ── port: its caches, guest memory ── the bytes move
//!            │ miss                        ▲
//!            └── views, mapping table      └── UNMAP, ATTACH, DETACH, changes of memory: invalidate
//! ```
//!
//! An access holds its port's lock from the translation until its bytes have moved. Whoever takes something away
//! changes the table or the views first and then takes the lock of each port in turn to invalidate: so it has
//! waited for the access that may still use the old translation, and a later one finds only the new state. A hit
//! takes no other lock, and agents with ports of their own share no cache line.
//!
//! There are two caches: the endpoint's own, which is only for accesses with ATS, and the IOMMU's for all others.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering, fence};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vm_memory::GuestMemoryMmap;

use crate::host::mapping::{IovaRange, Mapping};
use crate::host::soft::access::{CHUNK, Endpoint, Transfer, View, read};
use crate::host::soft::book::PendingResponse;
use crate::host::soft::cache::{Cache, CacheCounters, Cached};
use crate::host::soft::{AccessError, SoftHost};
use crate::host::{Fault, PageRequest, Requester};
use crate::spec::{DomainId, EndpointId, EventFlags, Gpa, Iova, MapFlags, Pasid, Reason};

/// Who makes an access, and of which kinds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Access {
    /// The address space; `None` without a PASID.
    pub pasid: Option<Pasid>,
    /// READ or WRITE; EXEC and PRIVILEGED in addition. They are reported, and decide nothing: mappings have no
    /// such flags.
    pub kinds: EventFlags,
    /// With a translation of the endpoint's own cache, which is made if it is not there: what PCI's ATS is. Otherwise
    /// with the IOMMU's, and the endpoint's is left alone.
    pub translated: bool,
}

impl Access {
    /// What a mapping must allow (M45).
    fn needed(&self) -> MapFlags {
        let mut needed = MapFlags::empty();
        needed.set(
            MapFlags::READ,
            self.kinds.intersects(EventFlags::READ | EventFlags::EXEC),
        );
        needed.set(MapFlags::WRITE, self.kinds.contains(EventFlags::WRITE));
        needed
    }
}

/// Why a port lets an access not through.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Denied {
    /// The endpoint was removed.
    #[error("the endpoint was removed")]
    NoEndpoint,
    /// The endpoint has no such PASID.
    #[error("the endpoint has no such PASID")]
    NoPasid,
    /// The requester is attached to nothing that lets accesses through.
    #[error("the requester is blocked")]
    Blocked,
    /// Nothing is mapped there.
    #[error("no translation")]
    Translation,
    /// What is mapped there does not allow the access.
    #[error("the mapping does not permit the access")]
    Permission,
    /// The translation leads to where there is no memory.
    #[error("no memory behind the address")]
    NoMemory,
}

impl Denied {
    /// Whether a page request may help.
    pub fn is_recoverable(self) -> bool {
        matches!(self, Self::Translation | Self::Permission)
    }

    /// How the driver is told.
    fn reason(self) -> Option<Reason> {
        match self {
            Self::NoEndpoint | Self::NoPasid => None,
            Self::Blocked => Some(Reason::Domain),
            Self::Translation | Self::Permission => Some(Reason::Mapping),
            Self::NoMemory => Some(Reason::Unknown),
        }
    }
}

/// Makes a change of tables or views visible to ports before [`PortState::is_used`] is asked.
pub(super) fn publish_change() {
    fence(Ordering::SeqCst);
}

/// What the host keeps of a port.
#[repr(align(128))]
pub(super) struct PortState {
    pub(super) endpoint: EndpointId,
    /// Taken before the endpoint's views, the mapping table and the book; never while one of them is held.
    inner: Mutex<Inner>,
    /// Others that want the lock. A mutex is not fair: an agent that never pauses would keep an UNMAP out.
    waiting: AtomicUsize,
    /// An access was made since the caches were emptied last; changed with the lock held. A port without has nothing to
    /// invalidate, and UNMAP passes it by: see [`PortState::is_used`].
    used: AtomicBool,
}

struct Inner {
    memory: GuestMemoryMmap,
    /// The Address Translation Cache of the endpoint.
    atc: Cache,
    /// The part of the IOMMU's cache that serves this agent.
    iotlb: Cache,
}

impl Inner {
    fn cache(&mut self, translated: bool) -> &mut Cache {
        match translated {
            true => &mut self.atc,
            false => &mut self.iotlb,
        }
    }

    fn invalidate_where(&mut self, matching: impl Fn(&Cached) -> bool) {
        self.atc.invalidate_where(&matching);
        self.iotlb.invalidate_where(&matching);
    }
}

impl PortState {
    pub(super) fn new(endpoint: EndpointId, memory: GuestMemoryMmap) -> Self {
        Self {
            endpoint,
            inner: Mutex::new(Inner {
                memory,
                atc: Cache::default(),
                iotlb: Cache::default(),
            }),
            waiting: AtomicUsize::new(0),
            used: AtomicBool::new(false),
        }
    }

    /// Whether it may have a translation of before, in a cache or in an access. [`publish_change`] comes first,
    /// and behind the change: then either this is true of an access that can have found the old state, or that
    /// access finds the new one.
    pub(super) fn is_used(&self) -> bool {
        self.used.load(Ordering::Relaxed)
    }

    /// For the agent's accesses. Nothing panics while it holds this lock, and if something did, what it guards is
    /// still whole.
    fn lock_for_access(&self) -> MutexGuard<'_, Inner> {
        while self.waiting.load(Ordering::Relaxed) != 0 {
            std::thread::yield_now();
        }
        let inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        if !self.used.load(Ordering::Relaxed) {
            self.used.store(true, Ordering::Relaxed);
            // Before the access looks at the table: see `is_used`.
            fence(Ordering::SeqCst);
        }
        inner
    }

    /// For all others: goes before accesses that have not begun.
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.waiting.fetch_add(1, Ordering::Relaxed);
        let inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        self.waiting.fetch_sub(1, Ordering::Relaxed);
        inner
    }

    pub(super) fn set_memory(&self, memory: GuestMemoryMmap) {
        self.lock().memory = memory;
    }

    fn clear(&self) {
        let mut inner = self.lock();
        inner.atc.clear();
        inner.iotlb.clear();
        self.used.store(false, Ordering::Relaxed);
    }

    /// When this returns, no access through translations of the range is in flight, and none is cached. The
    /// table has lost them already.
    pub(super) fn invalidate_range(&self, domain: DomainId, range: IovaRange) {
        let mut inner = self.lock();
        inner.atc.invalidate_range(domain, range);
        inner.iotlb.invalidate_range(domain, range);
    }

    /// The same for everything that a requester had.
    pub(super) fn invalidate_requester(&self, pasid: Option<Pasid>) {
        self.lock().invalidate_where(|cached| cached.pasid == pasid);
    }

    /// The same for everything.
    pub(super) fn invalidate_all(&self) {
        self.lock().invalidate_where(|_| true);
    }
}

/// An agent's way to memory; see the module's page. Made by [`SoftHost::port`].
pub struct Port {
    host: Arc<SoftHost>,
    endpoint: Arc<Endpoint>,
    state: Arc<PortState>,
}

impl Port {
    pub(super) fn new(host: Arc<SoftHost>, endpoint: Arc<Endpoint>, state: Arc<PortState>) -> Self {
        Self {
            host,
            endpoint,
            state,
        }
    }

    /// Empties the caches, as an endpoint does with its own when its ATS is disabled.
    pub fn flush(&self) {
        self.state.clear();
    }

    /// Moves bytes `done ..` of `transfer`, the next of which is at `iova`, as far as one translation goes and no
    /// more than 64 KiB; says how many. Nothing is reported to the driver: see [`Port::report`].
    ///
    /// [`Access::kinds`] has the direction of `transfer`.
    pub fn transfer(
        &self,
        access: Access,
        iova: Iova,
        transfer: &mut Transfer<'_>,
        done: usize,
    ) -> Result<usize, Denied> {
        let mut inner = self.state.lock_for_access();
        let mapping = self.translate_locked(&mut inner, access, iova)?;
        let room = usize::try_from(mapping.range.last.0 - iova.0)
            .unwrap_or(usize::MAX)
            .saturating_add(1);
        let count = (transfer.len() - done).min(CHUNK).min(room);
        match transfer.carry_out(&inner.memory, mapping.translate(iova), done, count) {
            0 => Err(Denied::NoMemory),
            moved => Ok(moved),
        }
    }

    /// An address translation request: whether the access would find a translation.
    pub fn translate(&self, access: Access, iova: Iova) -> Result<(), Denied> {
        let mut inner = self.state.lock_for_access();
        self.translate_locked(&mut inner, access, iova).map(|_| ())
    }

    fn translate_locked(
        &self,
        inner: &mut Inner,
        access: Access,
        iova: Iova,
    ) -> Result<Mapping, Denied> {
        let needed = access.needed();
        let cache = inner.cache(access.translated);
        if let Some(mapping) = cache.find(access.pasid, iova, needed) {
            return Ok(mapping);
        }
        let (domain, mapping) = self.look_up(access, iova, needed)?;
        let cached = Cached {
            pasid: access.pasid,
            domain,
            mapping,
        };
        cache.insert(iova, cached);
        Ok(mapping)
    }

    /// Asks the IOMMU. The port is locked: what is found stays in force until it is let go.
    fn look_up(
        &self,
        access: Access,
        iova: Iova,
        needed: MapFlags,
    ) -> Result<(Option<DomainId>, Mapping), Denied> {
        if !self.endpoint.has_pasid(access.pasid) {
            return Err(Denied::NoPasid);
        }
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
                Ok((None, identity))
            }
            View::Domain { id, mappings, .. } => match read(mappings).lookup(iova) {
                Some(mapping) if mapping.flags.contains(needed) => Ok((Some(*id), mapping)),
                Some(_) => Err(Denied::Permission),
                None => Err(Denied::Translation),
            },
        }
    }

    /// Raises a group of page requests; see [`SoftHost::page_request`].
    pub fn page_request(
        &self,
        pasid: Option<Pasid>,
        pages: Vec<PageRequest>,
    ) -> Result<PendingResponse, AccessError> {
        self.host.page_request(self.requester(pasid), pages)
    }

    /// Tells the driver of an access that was given up.
    pub fn report(&self, access: Access, denied: Denied, iova: Iova) {
        if let Some(reason) = denied.reason() {
            self.host.book.fault(Fault {
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
        self.host.forget_port(&self.state);
    }
}
