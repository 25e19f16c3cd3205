// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The fault worker: carries what the host raises to the event queue, on a thread and a loop of its own.
//!
//! It lives as long as [`super::serve`], connected or not: page requests that no driver can take are answered all the same.
//! Its twin for the request queue is `request_worker`.

use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use parking_lot::Mutex;
use vm_memory::GuestAddressSpace;
use vmm_sys_util::eventfd::EventFd;

use crate::device::Device;
use crate::device::events::EventQueue;
use crate::host::Host;
use crate::os::poller::Poller;
use crate::os::thread::Thread;
use crate::transport::event_queue::EventRing;
#[cfg(odd_bits)]
use crate::transport::odd_bits::OddEvents;
use crate::transport::ring::{Ring, RingError};
use crate::transport::vring::{State, Vring};
use crate::transport::{Memory, TransportError, new_event};

const WAKE: u64 = 0;
const KICK: u64 = 1;
const HOST: u64 = 2;

/// How often the event queue is looked at again because buffers came meanwhile, before anything else has its turn.
const LOOKS: usize = 16;

/// The thread; ends when dropped.
pub(super) struct FaultWorker {
    shared: Arc<FaultShared>,
    poller: Arc<Poller>,
    thread: Option<Thread<()>>,
}

/// What other threads tell the fault worker.
pub(super) struct FaultShared {
    device: Arc<Device>,
    memory: Memory,
    /// The event queue of the connection.
    vring: Mutex<Option<Vring>>,
    wake: Arc<EventFd>,
    exit: AtomicBool,
}

impl FaultWorker {
    /// Starts the worker.
    ///
    /// # Errors
    /// A descriptor or the thread cannot be made.
    pub fn start(
        device: Arc<Device>,
        host: &dyn Host,
        memory: Memory,
    ) -> Result<Self, TransportError> {
        let poller = Arc::new(Poller::new().map_err(TransportError::Descriptor)?);
        let shared = Arc::new(FaultShared {
            device,
            memory,
            vring: Mutex::default(),
            wake: Arc::new(new_event().map_err(TransportError::Descriptor)?),
            exit: AtomicBool::new(false),
        });
        poller
            .add(shared.wake.as_raw_fd(), WAKE)
            .map_err(TransportError::Descriptor)?;
        for fd in host.event_fds() {
            poller.add(fd, HOST).map_err(TransportError::Descriptor)?;
        }
        let (worker, waiting) = (Arc::clone(&shared), Arc::clone(&poller));
        let thread = Thread::spawn("fault worker", move || worker.run(&waiting))
            .map_err(TransportError::Thread)?;
        Ok(Self {
            shared,
            poller,
            thread: Some(thread),
        })
    }

    pub fn shared(&self) -> &Arc<FaultShared> {
        &self.shared
    }

    /// An event queue for a connection. It is served from [`FaultWorker::set_vring`] on.
    ///
    /// # Errors
    /// See [`Vring::new`].
    pub fn new_vring(&self, line: Arc<UnixStream>) -> io::Result<Vring> {
        let shared = &self.shared;
        Vring::new(
            shared.memory.clone(),
            Arc::clone(&self.poller),
            KICK,
            Arc::clone(&shared.wake),
            line,
        )
    }

    /// Serves this event queue from now on.
    pub fn set_vring(&self, vring: Vring) {
        *self.shared.vring.lock() = Some(vring);
        self.shared.wake();
    }

    /// The connection ends: the worker leaves its event queue alone, and is interrupted in what it waits for.
    pub fn leave_vring(&self) {
        if let Some(vring) = &*self.shared.vring.lock() {
            vring.close();
        }
        if let Some(thread) = &self.thread {
            thread.interrupt();
        }
    }

    /// The connection ends, or goes on with another vring: waits until the worker has let go of its event queue.
    pub fn forget_vring(&self) {
        let vring = self.shared.vring.lock().clone();
        if let Some(vring) = vring {
            vring.close();
            while !vring.is_free_soon() {
                self.leave_vring();
            }
        }
        *self.shared.vring.lock() = None;
    }
}

impl Drop for FaultWorker {
    fn drop(&mut self) {
        self.shared.exit.store(true, Ordering::Release);
        self.shared.wake();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            log::error!("the fault worker has panicked");
        }
    }
}

impl FaultShared {
    /// There is something to do.
    pub fn wake(&self) {
        // It fails only when the counter is full, and then the worker is awake.
        let _ = self.wake.write(1);
    }

    fn run(&self, poller: &Poller) {
        let mut deadline = None;
        while !self.exit.load(Ordering::Acquire) {
            let waited = poller.wait(deadline, |token| {
                if token == WAKE {
                    let _ = self.wake.read();
                }
            });
            if let Err(error) = waited {
                log::error!("the fault worker cannot wait for events: {error}");
                return;
            }
            // Other connections need it: a panic costs the queue that it served.
            deadline = catch_unwind(AssertUnwindSafe(|| self.service())).unwrap_or_else(|_| {
                log::error!("the fault worker has panicked, and leaves this connection's events");
                *self.vring.lock() = None;
                None
            });
        }
    }

    /// Returns when to call again at the latest.
    fn service(&self) -> Option<Instant> {
        let vring = self.vring.lock().clone();
        let served = vring.and_then(|vring| {
            vring.stand_back();
            let mut state = vring.serve();
            self.serve_queue(&vring, &mut state)
        });
        // Without a queue that takes them, events are held or answered.
        served.unwrap_or_else(|| self.device.service_events(None, Instant::now()))
    }

    /// `None` if the queue cannot be served; else when to call again at the latest.
    fn serve_queue(&self, vring: &Vring, state: &mut State) -> Option<Option<Instant>> {
        if !state.runs() || state.broken || vring.is_closed() {
            return None;
        }
        if std::mem::take(&mut state.unsure) {
            vring.notify(state);
        }
        // Let go of before the vring is.
        let memory = self.memory.memory();
        let mut deadline = None;
        let notify = || vring.notify(state);
        let served = Ring::new(&memory, &state.queue)
            .map(|mut ring| (self.serve(&mut ring, &mut deadline, notify), ring.saved()));
        let served = served.and_then(|(served, saved)| {
            saved.restore(&mut state.queue);
            served
        });
        match served {
            Ok(again) => {
                if again {
                    self.wake();
                }
                Some(deadline)
            }
            Err(error) => {
                state.broken = true;
                if self.device.counters().rings_broken.increment_and_log() {
                    log::warn!(
                        "the event queue is left alone until memory, queue or driver change: {error}"
                    );
                }
                None
            }
        }
    }

    /// Whether there is more to do at once.
    fn serve(
        &self,
        ring: &mut Ring<'_>,
        deadline: &mut Option<Instant>,
        notify: impl Fn(),
    ) -> Result<bool, RingError> {
        for _ in 0..LOOKS {
            // Before the device looks: what the driver adds meanwhile is not seen, and may come without a kick.
            let pending = ring.pending()?;
            let mut queue = EventRing::new(ring);
            let events: &mut dyn EventQueue = &mut queue;
            #[cfg(odd_bits)]
            let events = &mut OddEvents(events);
            *deadline = self.device.service_events(Some(events), Instant::now());
            let seen = pending.saturating_sub(queue.used);
            let error = queue.error;
            if ring.wants_interrupt() {
                notify();
            }
            if let Some(error) = error {
                return Err(error);
            }
            if !ring.enable_kicks(seen)? {
                return Ok(false);
            }
        }
        Ok(true)
    }
}
