// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The request worker: serves the request queue, and watches it for a while after each request.
//!
//! Its twin for the event queue is `fault_worker`.

use std::hint::spin_loop;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use vhost_user_backend::VringState;
use virtio_queue::QueueT;
use vm_memory::GuestAddressSpace;

use crate::device::Device;
use crate::transport::Memory;
use crate::transport::batch::{DeviceBatch, Execute, Held, serve_available};
use crate::transport::driver_life::DriverLife;
use crate::transport::fault_worker::FaultShared;
use crate::transport::lifecycle::Lifecycle;
#[cfg(odd_bits)]
use crate::transport::odd_bits::OddBatch;
use crate::transport::polling::Polling;
use crate::transport::ring::{Ring, RingError};
use crate::transport::vring::Vring;

/// How often the clock is read while polling: once in so many looks at the ring.
const LOOKS_PER_CLOCK: u32 = 16;

/// The worker of a connection.
pub(super) struct RequestWorker {
    device: Arc<Device>,
    memory: Memory,
    faults: Arc<FaultShared>,
    closing: AtomicBool,
    // Taken before the vring's lock.
    work: Mutex<Work>,
}

/// What the worker keeps from one service of the queue to the next.
struct Work {
    held: Vec<Held>,
    polling: Polling,
    lifecycle: Lifecycle,
    /// The state of the vring when it was found broken: until the front-end changes it, it is left alone.
    broken_at: Option<u32>,
}

impl RequestWorker {
    pub fn new(
        device: Arc<Device>,
        memory: Memory,
        faults: Arc<FaultShared>,
        poll: Duration,
        driver_life: Arc<DriverLife>,
    ) -> Self {
        Self {
            device,
            memory,
            faults,
            closing: AtomicBool::new(false),
            work: Mutex::new(Work {
                held: Vec::new(),
                polling: Polling::new(poll),
                lifecycle: Lifecycle::new(driver_life),
                broken_at: None,
            }),
        }
    }

    /// Makes the worker leave what it does.
    pub fn close(&self) {
        self.closing.store(true, Ordering::SeqCst);
    }

    /// The device was reset by the front-end.
    pub fn reset(&self) {
        self.work.lock().lifecycle.reset();
    }

    /// The queue has stopped.
    pub fn stopped(&self, vring: &Vring) {
        // The worker has left, or is about to.
        vring.interrupt();
        let mut work = self.work.lock();
        let state = vring.serve();
        let memory = self.memory.memory();
        work.lifecycle
            .stopped(vring.starts(), state.get_queue(), &memory, &self.device);
    }

    /// Serves the queue until nothing comes any more.
    pub fn serve(&self, vring: &Vring) {
        let mut work = self.work.lock();
        loop {
            let mut state = vring.serve();
            let served = self.serve_once(&mut work, vring, &mut state);
            drop(state);
            match served {
                Some(Served::Interrupted) if !self.is_closing() => vring.stand_back(),
                Some(Served::Broken(error)) => {
                    work.broken_at = Some(vring.changes());
                    if self.device.counters().rings_broken.increment_and_log() {
                        log::warn!(
                            "the request queue is left alone until it is started again: {error}"
                        );
                    }
                    return;
                }
                _ => return,
            }
        }
    }

    fn is_closing(&self) -> bool {
        self.closing.load(Ordering::Relaxed)
    }

    /// `None` if the queue does not run.
    fn serve_once(
        &self,
        work: &mut Work,
        vring: &Vring,
        state: &mut VringState<Memory>,
    ) -> Option<Served> {
        if !state.is_enabled() || !state.get_queue().ready() || self.is_closing() {
            return None;
        }
        let memory = self.memory.memory();
        if work
            .lifecycle
            .started(vring.starts(), state.get_queue(), &memory, &self.device)
        {
            self.faults.wake();
        }
        if work.broken_at == Some(vring.changes()) {
            return None;
        }
        let notify = || {
            if let Err(error) = state.signal_used_queue() {
                log::debug!("the driver cannot be notified of requests: {error}");
            }
        };
        let mut service = Service {
            held: &mut work.held,
            polling: &mut work.polling,
            notify,
            interrupted: || vring.is_wanted() || self.is_closing(),
        };
        let batch = || DeviceBatch::new(&self.device);
        #[cfg(odd_bits)]
        let batch = || OddBatch::new(batch());
        let result: Result<_, RingError> = Ring::new(&memory, state.get_queue()).map(|mut ring| {
            let served = service.run(&mut ring, batch, || self.faults.wake());
            (ring.saved(), served)
        });
        match result {
            Ok((saved, served)) => {
                saved.restore(state.get_queue_mut());
                Some(served)
            }
            Err(error) => Some(Served::Broken(error)),
        }
    }
}

/// What serving a ring for a while came to.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Served {
    /// There is nothing to do until the driver kicks.
    Idle,
    /// The ring is wanted by another thread.
    Interrupted,
    /// The ring cannot be served.
    Broken(RingError),
}

/// What a worker needs besides the ring.
pub(crate) struct Service<'a, N, I> {
    pub held: &'a mut Vec<Held>,
    pub polling: &'a mut Polling,
    /// Notifies the driver.
    pub notify: N,
    /// Whether another thread wants the ring.
    pub interrupted: I,
}

impl<N: Fn(), I: Fn() -> bool> Service<'_, N, I> {
    /// Serves the ring until nothing comes any more. `batch` begins a batch; `events_wanted` is called when one
    /// says so.
    pub fn run<B: Execute>(
        &mut self,
        ring: &mut Ring<'_>,
        batch: impl Fn() -> B,
        events_wanted: impl Fn(),
    ) -> Served {
        match self.run_until(ring, batch, events_wanted) {
            Ok(served) => served,
            Err(error) => Served::Broken(error),
        }
    }

    fn run_until<B: Execute>(
        &mut self,
        ring: &mut Ring<'_>,
        batch: impl Fn() -> B,
        events_wanted: impl Fn(),
    ) -> Result<Served, RingError> {
        if ring.pending()? == 0 {
            // A spurious wake-up, or one before the first request: no reason to watch.
            if !ring.enable_kicks(0)? {
                return Ok(Served::Idle);
            }
        }
        self.polling.woken(Instant::now());
        loop {
            ring.disable_kicks();
            while ring.pending()? != 0 {
                if serve_available(ring, batch(), self.held)?.events_wanted {
                    events_wanted();
                }
                if ring.wants_interrupt() {
                    (self.notify)();
                }
                if (self.interrupted)() {
                    return Ok(Served::Interrupted);
                }
            }
            match self.watch(ring)? {
                Watch::Paid => continue,
                Watch::Interrupted => return Ok(Served::Interrupted),
                Watch::Expired => {}
            }
            // What came in while asking for a kick may come without one.
            if !ring.enable_kicks(0)? {
                return Ok(Served::Idle);
            }
        }
    }

    /// Watches the ring, without kicks, for as long as that is likely to pay.
    fn watch(&mut self, ring: &Ring<'_>) -> Result<Watch, RingError> {
        let window = self.polling.window();
        let start = Instant::now();
        self.polling.idle(start);
        if window.is_zero() {
            return Ok(Watch::Expired);
        }
        loop {
            for _ in 0..LOOKS_PER_CLOCK {
                if ring.pending()? != 0 {
                    self.polling.paid();
                    return Ok(Watch::Paid);
                }
                if (self.interrupted)() {
                    return Ok(Watch::Interrupted);
                }
                spin_loop();
            }
            if start.elapsed() >= window {
                return Ok(Watch::Expired);
            }
        }
    }
}

enum Watch {
    Paid,
    Interrupted,
    Expired,
}
