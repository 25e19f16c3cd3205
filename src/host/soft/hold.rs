// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The hold on tables of the driver, and the accesses that wait for its end.
//!
//! While the queues stand still, the driver is paused or gone, and nobody can say which. So no table is read, and accesses
//! through one wait, without a lock. Whatever may change what such an access finds wakes all of them, and each looks again.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Waker};

use parking_lot::Mutex;

use crate::host::soft::Port;
use crate::spec::Pasid;

/// Whether tables are held, and who waits.
#[derive(Default)]
pub(super) struct Hold {
    on: AtomicBool,
    /// No other lock is taken with it, nor a waker called.
    waiting: Mutex<Waiting>,
}

#[derive(Default)]
struct Waiting {
    next: u64,
    wakers: BTreeMap<u64, Waker>,
}

impl Hold {
    /// Begins. Behind it comes a fence, and then the lock of each port that is used.
    pub(super) fn begin(&self) {
        self.on.store(true, Ordering::Relaxed);
    }

    /// Ends: the accesses that wait go on.
    pub(super) fn end(&self) {
        self.on.store(false, Ordering::Relaxed);
        self.wake();
    }

    /// For an access, with its port locked: see [`super::port::PortState::is_used`].
    pub(super) fn is_on(&self) -> bool {
        self.on.load(Ordering::Relaxed)
    }

    /// What an access finds has changed. The change comes first.
    pub(super) fn wake(&self) {
        let wakers = std::mem::take(&mut self.waiting.lock().wakers);
        wakers.into_values().for_each(Waker::wake);
    }

    /// Enters a waker, under the number that it had before.
    fn enter(&self, number: Option<u64>, waker: &Waker) -> u64 {
        let mut waiting = self.waiting.lock();
        let number = number.unwrap_or_else(|| {
            waiting.next += 1;
            waiting.next
        });
        waiting.wakers.insert(number, waker.clone());
        number
    }

    fn leave(&self, number: u64) {
        self.waiting.lock().wakers.remove(&number);
    }

    /// How many wait.
    #[cfg(test)]
    pub(super) fn waiting(&self) -> usize {
        self.waiting.lock().wakers.len()
    }
}

/// Ready when the accesses of a requester are not held. Made by [`Port::released`].
pub struct Released<'a> {
    port: &'a Port,
    pasid: Option<Pasid>,
    number: Option<u64>,
}

impl<'a> Released<'a> {
    pub(super) fn new(port: &'a Port, pasid: Option<Pasid>) -> Self {
        Self {
            port,
            pasid,
            number: None,
        }
    }
}

impl Future for Released<'_> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        // Before the look: what changes behind it wakes.
        let number = self.port.hold().enter(self.number, context.waker());
        self.number = Some(number);
        match self.port.is_held(self.pasid) {
            true => Poll::Pending,
            false => Poll::Ready(()),
        }
    }
}

impl Drop for Released<'_> {
    fn drop(&mut self) {
        if let Some(number) = self.number {
            self.port.hold().leave(number);
        }
    }
}
