// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The part of a port that the host can invalidate: its caches and its guest memory, under one lock.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering, fence};

use parking_lot::{Mutex, MutexGuard, RwLock};
use vm_memory::GuestMemoryMmap;

use crate::host::Requester;
use crate::host::mapping::IovaRange;
use crate::host::soft::cache::{Cache, Entry};
use crate::host::soft::hold::Hold;
use crate::spec::{DomainId, EndpointId};

/// The ports of a host.
#[derive(Default)]
pub(in crate::host::soft) struct Ports {
    open: RwLock<Open>,
    /// What holds them up where a table of the driver is in their way.
    pub(in crate::host::soft) hold: Hold,
}

#[derive(Default)]
struct Open {
    /// What a port that is made begins with; each keeps its own copy of the map.
    memory: GuestMemoryMmap,
    ports: Vec<Arc<PortState>>,
}

impl Ports {
    pub(super) fn add(&self, endpoint: EndpointId) -> Arc<PortState> {
        let mut open = self.open.write();
        let state = Arc::new(PortState::new(endpoint, open.memory.clone()));
        open.ports.push(Arc::clone(&state));
        state
    }

    pub(super) fn remove(&self, state: &Arc<PortState>) {
        self.open
            .write()
            .ports
            .retain(|port| !Arc::ptr_eq(port, state));
    }

    /// When this returns, no access uses another memory.
    pub(in crate::host::soft) fn set_memory(&self, memory: &GuestMemoryMmap) {
        let mut open = self.open.write();
        open.memory = memory.clone();
        for port in &open.ports {
            port.lock().memory = memory.clone();
        }
    }

    /// When this returns, no access through translations of the range is in flight, and none is cached. The table has
    /// lost them already.
    pub(in crate::host::soft) fn invalidate_range(&self, domain: DomainId, range: IovaRange) {
        // The change of the table is visible to ports before they are asked whether they are used.
        fence(Ordering::SeqCst);
        for port in self.open.read().ports.iter().filter(|port| port.is_used()) {
            let mut inner = port.lock();
            inner.atc.invalidate_range(domain, range);
            inner.iotlb.invalidate_range(domain, range);
        }
    }

    /// When this returns, no access through what a table had for the range before is in flight, nor its walk, and nothing
    /// of it is kept, pages that only overlap included (X103). It waits for no more than one turn of each port (X105).
    ///
    /// Linux invalidates everything for each page that it takes back. So a port that keeps nothing any more counts as not
    /// used, and the next call passes it by.
    pub(in crate::host::soft) fn invalidate_table(&self, domain: DomainId, range: IovaRange) {
        // A large page is in slots of pages that need not be in the range.
        self.invalidate_used(|entry| entry.is_of(domain, range));
    }

    /// When this returns, no access through a table is in flight, nor its walk, nothing of one is kept, and none begins
    /// before [`Hold::end`] (X87).
    pub(in crate::host::soft) fn hold_tables(&self, tables: &BTreeSet<DomainId>) {
        self.hold.begin();
        self.invalidate_used(|entry| entry.domain.is_some_and(|id| tables.contains(&id)));
    }

    /// Invalidates what matches, and waits for one turn of each port that is used.
    fn invalidate_used(&self, matching: impl Fn(&Entry) -> bool) {
        // What was changed is visible to walks before ports are asked whether they are used.
        fence(Ordering::SeqCst);
        for port in self.open.read().ports.iter().filter(|port| port.is_used()) {
            let mut inner = port.lock();
            inner.invalidate_where(&matching);
            if inner.keeps_nothing() {
                port.used.store(false, Ordering::Relaxed);
            }
        }
    }

    /// The same as [`Self::invalidate_range`] for everything that a requester had.
    pub(in crate::host::soft) fn invalidate_requester(&self, requester: Requester) {
        for port in self.of(requester.endpoint) {
            let matching = |entry: &Entry| entry.pasid == requester.pasid;
            port.lock().invalidate_where(matching);
        }
    }

    /// The same for everything that an endpoint had.
    pub(in crate::host::soft) fn invalidate_endpoint(&self, endpoint: EndpointId) {
        for port in self.of(endpoint) {
            port.lock().invalidate_where(|_| true);
        }
    }

    /// The ports of an endpoint.
    pub(in crate::host::soft) fn of(&self, endpoint: EndpointId) -> Vec<Arc<PortState>> {
        let open = self.open.read();
        let of = open.ports.iter().filter(|port| port.endpoint == endpoint);
        of.cloned().collect()
    }
}

/// What the host keeps of a port.
#[repr(align(128))]
pub(in crate::host::soft) struct PortState {
    pub(super) endpoint: EndpointId,
    /// Taken before the endpoint's views, the mapping table and the events; never while one of them is held.
    inner: Mutex<Inner>,
    /// How many callers of [`Self::lock`] want the lock. A mutex is not fair: an agent that never pauses would keep an
    /// UNMAP out.
    waiting: AtomicUsize,
    /// An access was made since the caches were found empty last; changed with the lock held. A port without has nothing to
    /// invalidate, and UNMAP passes it by: see [`PortState::is_used`].
    used: AtomicBool,
}

pub(in crate::host::soft) struct Inner {
    pub(super) memory: GuestMemoryMmap,
    /// The Address Translation Cache of the endpoint.
    pub(super) atc: Cache,
    /// The part of the IOMMU's cache that serves this agent.
    iotlb: Cache,
}

impl Inner {
    pub(super) fn cache(&mut self, translated: bool) -> &mut Cache {
        match translated {
            true => &mut self.atc,
            false => &mut self.iotlb,
        }
    }

    fn invalidate_where(&mut self, matching: impl Fn(&Entry) -> bool) {
        self.atc.invalidate_where(&matching);
        self.iotlb.invalidate_where(&matching);
    }

    fn keeps_nothing(&self) -> bool {
        self.atc.is_empty() && self.iotlb.is_empty()
    }
}

impl PortState {
    fn new(endpoint: EndpointId, memory: GuestMemoryMmap) -> Self {
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

    /// Whether it may have a translation of before, in a cache or in an access. A fence comes first, and behind the
    /// change: then either this is true of an access that can have found the old state, or that access finds the new
    /// one.
    pub(in crate::host::soft) fn is_used(&self) -> bool {
        self.used.load(Ordering::Relaxed)
    }

    /// For the agent's accesses.
    pub(in crate::host::soft) fn lock_for_access(&self) -> MutexGuard<'_, Inner> {
        while self.waiting.load(Ordering::Relaxed) != 0 {
            std::thread::yield_now();
        }
        let inner = self.inner.lock();
        if !self.used.load(Ordering::Relaxed) {
            self.used.store(true, Ordering::Relaxed);
            // Before the access looks at the table: see `is_used`.
            fence(Ordering::SeqCst);
        }
        inner
    }

    /// Whether somebody waits in [`Self::lock`].
    #[cfg(test)]
    pub(in crate::host::soft) fn is_wanted(&self) -> bool {
        self.waiting.load(Ordering::Relaxed) != 0
    }

    /// For everything else: goes before accesses that have not begun.
    pub(super) fn lock(&self) -> MutexGuard<'_, Inner> {
        self.waiting.fetch_add(1, Ordering::Relaxed);
        let inner = self.inner.lock();
        self.waiting.fetch_sub(1, Ordering::Relaxed);
        inner
    }

    pub(super) fn clear(&self) {
        let mut inner = self.lock();
        inner.atc.clear();
        inner.iotlb.clear();
        self.used.store(false, Ordering::Relaxed);
    }
}
