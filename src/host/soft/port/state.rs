// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The part of a port that the host can invalidate: its caches and its guest memory, under one lock.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering, fence};

use parking_lot::{Mutex, MutexGuard};
use vm_memory::GuestMemoryMmap;

use crate::host::mapping::IovaRange;
use crate::host::soft::cache::{Cache, Cached};
use crate::spec::{DomainId, EndpointId, Pasid};

/// Makes a change of tables or views visible to ports before [`PortState::is_used`] is asked.
pub(in crate::host::soft) fn publish_change() {
    fence(Ordering::SeqCst);
}

/// What the host keeps of a port.
#[repr(align(128))]
pub(in crate::host::soft) struct PortState {
    pub(in crate::host::soft) endpoint: EndpointId,
    /// Taken before the endpoint's views, the mapping table and the events; never while one of them is held.
    inner: Mutex<Inner>,
    /// How many callers of [`Self::lock`] want the lock. A mutex is not fair: an agent that never pauses would keep an
    /// UNMAP out.
    waiting: AtomicUsize,
    /// An access was made since the caches were emptied last; changed with the lock held. A port without has nothing to
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

    fn invalidate_where(&mut self, matching: impl Fn(&Cached) -> bool) {
        self.atc.invalidate_where(&matching);
        self.iotlb.invalidate_where(&matching);
    }
}

impl PortState {
    pub(in crate::host::soft) fn new(endpoint: EndpointId, memory: GuestMemoryMmap) -> Self {
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

    /// For everything else: goes before accesses that have not begun.
    pub(super) fn lock(&self) -> MutexGuard<'_, Inner> {
        self.waiting.fetch_add(1, Ordering::Relaxed);
        let inner = self.inner.lock();
        self.waiting.fetch_sub(1, Ordering::Relaxed);
        inner
    }

    pub(in crate::host::soft) fn set_memory(&self, memory: GuestMemoryMmap) {
        self.lock().memory = memory;
    }

    pub(super) fn clear(&self) {
        let mut inner = self.lock();
        inner.atc.clear();
        inner.iotlb.clear();
        self.used.store(false, Ordering::Relaxed);
    }

    /// When this returns, no access through translations of the range is in flight, and none is cached. The
    /// table has lost them already.
    pub(in crate::host::soft) fn invalidate_range(&self, domain: DomainId, range: IovaRange) {
        let mut inner = self.lock();
        inner.atc.invalidate_range(domain, range);
        inner.iotlb.invalidate_range(domain, range);
    }

    /// The same for everything that a requester had.
    pub(in crate::host::soft) fn invalidate_requester(&self, pasid: Option<Pasid>) {
        self.lock().invalidate_where(|cached| cached.pasid == pasid);
    }

    /// The same for everything.
    pub(in crate::host::soft) fn invalidate_all(&self) {
        self.lock().invalidate_where(|_| true);
    }
}
