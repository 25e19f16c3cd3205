// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! When a page request comes by: the time of each call to a host.

use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use crate::common::watched_host::{Watch, WatchedHost};

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

/// When the host was called.
#[derive(Default)]
pub struct Stamps {
    /// A page request was taken out of the host's queue.
    pub taken: Stamp,
    /// The host was told an answer.
    pub answering: Stamp,
    /// It had passed the answer on.
    pub answered: Stamp,
}

impl Watch for Stamps {
    fn taken(&self) {
        self.taken.set();
    }
    fn answering(&self) {
        self.answering.set();
    }
    fn answered(&self) {
        self.answered.set();
    }
}

/// A host, and when it was called.
pub type TimedHost<H> = WatchedHost<H, Stamps>;
