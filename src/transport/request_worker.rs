// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The request worker: serves the request queue, and watches it for a while after each request.
//!
//! It lives as long as a connection, or until a reattachment. Its twin for the event queue is `fault_worker`, which lives as long as
//! [`super::serve`].

use std::hint::spin_loop;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use vm_memory::GuestAddressSpace;
use vmm_sys_util::eventfd::EventFd;

use crate::device::Device;
use crate::os::poller::Poller;
use crate::os::thread::Thread;
use crate::transport::batch::{DeviceBatch, Execute, Held, serve_available};
use crate::transport::driver_life::DriverLife;
use crate::transport::fault_worker::FaultShared;
use crate::transport::lifecycle::Lifecycle;
#[cfg(odd_bits)]
use crate::transport::odd_bits::OddBatch;
use crate::transport::polling::Polling;
use crate::transport::ring::{Ring, RingError};
use crate::transport::vring::{State, Vring};
use crate::transport::{Hangup, Memory, new_event};

const WAKE: u64 = 0;
const KICK: u64 = 1;

/// How often the clock is read while polling: once in so many looks at the ring.
const LOOKS_PER_CLOCK: u32 = 16;

/// The thread; ends when dropped.
pub(super) struct RequestWorker {
    shared: Arc<RequestShared>,
    thread: Option<Thread<()>>,
}

/// What other threads tell the request worker.
pub(super) struct RequestShared {
    device: Arc<Device>,
    memory: Memory,
    faults: Arc<FaultShared>,
    vring: Vring,
    wake: Arc<EventFd>,
    // Taken before the vring's lock.
    work: Mutex<Work>,
}

/// What the worker keeps from one service of the queue to the next.
struct Work {
    held: Vec<Held>,
    polling: Polling,
    lifecycle: Lifecycle,
}

impl RequestWorker {
    /// Starts the worker of the connection `line`, which it ends if it fails or panics.
    ///
    /// # Errors
    /// A descriptor or the thread cannot be made.
    pub fn start(
        device: Arc<Device>,
        memory: Memory,
        faults: Arc<FaultShared>,
        poll: Duration,
        driver_life: Arc<DriverLife>,
        line: &Arc<UnixStream>,
    ) -> io::Result<Self> {
        let poller = Arc::new(Poller::new()?);
        let wake = Arc::new(new_event()?);
        let shared = Arc::new(RequestShared {
            device,
            vring: Vring::new(
                memory.clone(),
                Arc::clone(&poller),
                KICK,
                Arc::clone(&wake),
                Arc::clone(line),
            )?,
            memory,
            faults,
            wake,
            work: Mutex::new(Work {
                held: Vec::new(),
                polling: Polling::new(poll),
                lifecycle: Lifecycle::new(driver_life),
            }),
        });
        poller.add(shared.wake.as_raw_fd(), WAKE)?;
        let (worker, line) = (Arc::clone(&shared), Arc::clone(line));
        let thread = Thread::spawn("request worker", move || {
            let hangup = Hangup::new(line);
            worker.run(&poller);
            if worker.vring.is_closed() {
                hangup.disarm();
            }
        })?;
        Ok(Self {
            shared,
            thread: Some(thread),
        })
    }

    pub fn shared(&self) -> &Arc<RequestShared> {
        &self.shared
    }

    /// Goes on with what another worker knew of the driver. The queue does not run yet.
    pub fn take_over(&self, lifecycle: Lifecycle) {
        self.shared.work.lock().lifecycle = lifecycle;
    }

    /// Ends the worker between two batches: whatever it took from the ring is back in it. Returns what it knows of the
    /// driver.
    pub fn end(self) -> Lifecycle {
        let shared = Arc::clone(&self.shared);
        drop(self);
        shared.work.lock().lifecycle.clone()
    }

    /// The connection ends: the worker leaves the queue alone, and is interrupted in what it waits for.
    pub fn leave_vring(&self) {
        self.shared.vring.close();
        if let Some(thread) = &self.thread {
            thread.interrupt();
        }
    }
}

impl Drop for RequestWorker {
    fn drop(&mut self) {
        self.shared.vring.close();
        self.shared.wake();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            log::error!("the request worker has panicked");
        }
    }
}

impl RequestShared {
    /// The request queue.
    pub fn vring(&self) -> &Vring {
        &self.vring
    }

    /// There is something to do.
    pub fn wake(&self) {
        // It fails only when the counter is full, and then the worker is awake.
        let _ = self.wake.write(1);
    }

    /// The device was reset by the front-end.
    pub fn reset(&self) {
        // The worker lets go, if it has the queue.
        self.vring.look(|_| ());
        self.work.lock().lifecycle.reset();
    }

    /// The queue has stopped.
    pub fn stopped(&self) {
        self.vring.look(|_| ());
        let mut work = self.work.lock();
        let memory = self.memory.memory();
        self.vring.look(|state| {
            work.lifecycle
                .stopped(state.starts, &state.queue, &memory, &self.device);
        });
        // Time-outs stand still.
        self.faults.wake();
    }

    fn run(&self, poller: &Poller) {
        while !self.vring.is_closed() {
            let waited = poller.wait(None, |token| {
                if token == WAKE {
                    let _ = self.wake.read();
                }
            });
            if let Err(error) = waited {
                log::error!("the request worker cannot wait for events: {error}");
                return;
            }
            self.serve();
        }
    }

    /// Serves the queue until nothing comes any more.
    fn serve(&self) {
        let mut work = self.work.lock();
        loop {
            let served = self.serve_once(&mut work);
            match served {
                Some(Served::Interrupted) => self.vring.stand_back(),
                Some(Served::Broken(error)) => {
                    if self.device.counters().rings_broken.increment_and_log() {
                        log::warn!(
                            "the request queue is left alone until memory, queue or driver change: {error}"
                        );
                    }
                    return;
                }
                Some(Served::Idle) | None => return,
            }
        }
    }

    /// `None` if the queue is not to be served.
    fn serve_once(&self, work: &mut Work) -> Option<Served> {
        let mut state = self.vring.serve();
        if !state.runs() || self.vring.is_closed() {
            return None;
        }
        if std::mem::take(&mut state.unsure) {
            self.vring.notify(&state);
        }
        // Let go of before the vring is.
        let memory = self.memory.memory();
        if work
            .lifecycle
            .started(state.starts, &state.queue, &memory, &self.device)
        {
            self.faults.wake();
        }
        if state.broken {
            return None;
        }
        let result = Ring::new(&memory, &state.queue)
            .map(|mut ring| (self.serve_ring(work, &state, &mut ring), ring.saved()));
        let served = match result {
            Ok((served, saved)) => {
                saved.restore(&mut state.queue);
                served
            }
            Err(error) => Served::Broken(error),
        };
        state.broken = matches!(served, Served::Broken(_));
        Some(served)
    }

    fn serve_ring(&self, work: &mut Work, state: &State, ring: &mut Ring<'_>) -> Served {
        let mut service = Service {
            held: &mut work.held,
            polling: &mut work.polling,
            notify: || self.vring.notify(state),
            interrupted: || self.vring.is_wanted(),
        };
        let batch = || DeviceBatch::new(&self.device);
        #[cfg(odd_bits)]
        let batch = || OddBatch::new(batch());
        service.run(ring, batch, || self.faults.wake())
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
