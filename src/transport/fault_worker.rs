// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The fault worker: carries what the host raises to the event queue, on a thread and a loop of its own.
//!
//! It lives as long as [`super::serve`], connected or not: what nobody can take is answered all the same.

use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Instant;

use vhost_user_backend::ShutdownHandle;
use vm_memory::GuestAddressSpace;
use vmm_sys_util::eventfd::EventFd;

use crate::device::Device;
use crate::device::events::EventQueue;
use crate::host::Host;
use crate::os::poller::Poller;
use crate::transport::event_queue::EventRing;
#[cfg(odd_bits)]
use crate::transport::odd_bits::OddEvents;
use crate::transport::ring::{Ring, RingError};
use crate::transport::vring::Vring;
use crate::transport::{Memory, TransportError, new_event};

const WAKE: u64 = 0;
const STOP: u64 = 1;
const HOST: u64 = 2;

/// How often the event queue is looked at again because buffers came meanwhile, before anything else has its turn.
const LOOKS: usize = 16;

/// The thread; ends when dropped.
pub(super) struct FaultWorker {
    shared: Arc<FaultShared>,
    thread: Option<JoinHandle<()>>,
}

/// What others tell the fault worker.
pub(super) struct FaultShared {
    device: Arc<Device>,
    memory: Memory,
    wake: EventFd,
    exit: AtomicBool,
    /// The event queue of the connection, once it was started.
    vring: Mutex<Option<Vring>>,
    connection: Mutex<Connection>,
}

#[derive(Default)]
struct Connection {
    shutdown: Option<ShutdownHandle>,
    stopping: bool,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl FaultWorker {
    pub fn start(
        device: Arc<Device>,
        host: &dyn Host,
        memory: Memory,
        stop: &EventFd,
    ) -> Result<Self, TransportError> {
        let shared = Arc::new(FaultShared {
            device,
            memory,
            wake: new_event()?,
            exit: AtomicBool::new(false),
            vring: Mutex::default(),
            connection: Mutex::default(),
        });
        let stop = stop.try_clone().map_err(TransportError::Descriptor)?;
        let poller = Poller::new().map_err(TransportError::Descriptor)?;
        poller
            .add(shared.wake.as_raw_fd(), WAKE)
            .and_then(|()| poller.add(stop.as_raw_fd(), STOP))
            .map_err(TransportError::Descriptor)?;
        for fd in host.event_fds() {
            poller.add(fd, HOST).map_err(TransportError::Descriptor)?;
        }
        let worker = Arc::clone(&shared);
        let thread = std::thread::Builder::new()
            .name("fault worker".into())
            .spawn(move || worker.run(&poller, &stop))
            .map_err(TransportError::Thread)?;
        Ok(Self {
            shared,
            thread: Some(thread),
        })
    }

    pub fn shared(&self) -> &Arc<FaultShared> {
        &self.shared
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

    /// The event queue runs, or stopped running, or has buffers.
    pub fn set_vring(&self, vring: Option<&Vring>) {
        *lock(&self.vring) = vring.cloned();
        self.wake();
    }

    /// The connection to end when the process is told to stop.
    pub fn set_connection(&self, shutdown: Option<ShutdownHandle>) {
        let mut connection = lock(&self.connection);
        connection.shutdown = shutdown;
        connection.end_if_stopping();
    }

    fn run(&self, poller: &Poller, stop: &EventFd) {
        let mut broken_at = None;
        let mut deadline = None;
        while !self.exit.load(Ordering::Acquire) {
            let waited = poller.wait(deadline, |token| match token {
                WAKE => {
                    let _ = self.wake.read();
                }
                STOP => {
                    // It stays readable for the others who watch it.
                    poller.remove(stop);
                    let mut connection = lock(&self.connection);
                    connection.stopping = true;
                    connection.end_if_stopping();
                }
                _ => {}
            });
            if let Err(error) = waited {
                log::error!("the fault worker cannot wait for events: {error}");
                return;
            }
            deadline = self.service(&mut broken_at);
        }
    }

    /// `broken_at`: the state of the vring when it was found broken; until the front-end changes it, it is left
    /// alone.
    fn service(&self, broken_at: &mut Option<u32>) -> Option<Instant> {
        let vring = lock(&self.vring).clone();
        let Some(vring) = vring else {
            return self.device.service_events(None, Instant::now());
        };
        vring.stand_back();
        let mut state = vring.serve();
        let runs = state.is_enabled() && virtio_queue::QueueT::ready(state.get_queue());
        if !runs || *broken_at == Some(vring.changes()) {
            drop(state);
            return self.device.service_events(None, Instant::now());
        }
        *broken_at = None;
        let memory = self.memory.memory();
        let mut deadline = None;
        let notify = || {
            if let Err(error) = state.signal_used_queue() {
                log::debug!("the driver cannot be notified of events: {error}");
            }
        };
        let served = Ring::new(&memory, state.get_queue()).and_then(|mut ring| {
            let served = self.serve(&mut ring, &mut deadline, notify);
            Ok((ring.saved(), served?))
        });
        match served {
            Ok((saved, again)) => {
                saved.restore(state.get_queue_mut());
                if again {
                    self.wake();
                }
            }
            Err(error) => {
                *broken_at = Some(vring.changes());
                drop(state);
                if self.device.counters().rings_broken.increment_and_log() {
                    log::warn!("the event queue is left alone until it is started again: {error}");
                }
                deadline = self.device.service_events(None, Instant::now());
            }
        }
        deadline
    }

    /// Whether there is more to do at once.
    fn serve(
        &self,
        ring: &mut Ring<'_>,
        deadline: &mut Option<Instant>,
        notify: impl Fn(),
    ) -> Result<bool, RingError> {
        for _ in 0..LOOKS {
            let mut queue = EventRing::new(ring);
            let events: &mut dyn EventQueue = &mut queue;
            #[cfg(odd_bits)]
            let events = &mut OddEvents(events);
            *deadline = self.device.service_events(Some(events), Instant::now());
            let seen = queue.pending();
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

impl Connection {
    fn end_if_stopping(&self) {
        if self.stopping
            && let Some(shutdown) = &self.shutdown
        {
            shutdown.shutdown();
        }
    }
}
