// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! vhost-user: carries the device to a front-end.
//!
//! ```text
//! front-end ── messages ── backend ── memory ── device, host
//! request queue ── ring, chain ── request_worker (polling, lifecycle) ── batch ── device
//! event queue ── ring, chain ── fault_worker ── event_queue ── device, host
//! ```
//!
//! A connection has a daemon of vhost-user-backend with two threads: the *request worker* and one that tells the
//! *fault worker* of kicks of the event queue. The fault worker outlives connections; so does the device.

mod backend;
pub(crate) mod batch;
mod chain;
mod driver_life;
pub(crate) mod event_queue;
mod fault_worker;
mod guest;
mod lifecycle;
mod memory;
#[cfg(any(odd_bits, test))]
#[cfg_attr(
    not(odd_bits),
    expect(dead_code, reason = "only its unit tests use it")
)]
mod odd_bits;
pub(crate) mod polling;
mod relay;
pub(crate) mod request_worker;
pub(crate) mod ring;
mod vring;

use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use vhost::vhost_user::{Error as ProtocolError, Listener};
use vhost_user_backend::{Error as DaemonError, VhostUserDaemon};
use vm_memory::{GuestMemoryAtomic, GuestMemoryMmap};
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::device::Device;
use crate::host::Host;
use crate::os::poller::Poller;
use crate::transport::backend::{Backend, EXIT};
use crate::transport::fault_worker::FaultWorker;

pub use driver_life::{DriverLife, Stop};

/// The most entries that a virtqueue can have.
pub const MAX_QUEUE_SIZE: usize = 1024;

/// How long to wait before another front-end is accepted when that has just failed.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Guest memory as the library shares it.
type Memory = GuestMemoryAtomic<GuestMemoryMmap>;

/// Where front-ends come from.
#[derive(Debug)]
pub enum Source {
    /// A listening socket: one front-end after another, until told to stop. Others wait in its backlog.
    Listen(UnixListener),
    /// A connected socket: one front-end, until it goes.
    Connected(UnixStream),
}

/// How to serve.
#[derive(Clone, Debug)]
pub struct Options {
    /// The longest time that the request queue is watched before its worker sleeps; zero: not at all.
    pub poll: Duration,
    /// What QMP knows of the driver's life.
    pub driver_life: Arc<DriverLife>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            poll: Duration::from_micros(200),
            driver_life: Arc::default(),
        }
    }
}

/// Why serving has come to an end.
#[derive(Debug, thiserror::Error)]
pub enum TransportError {
    /// A descriptor cannot be made or watched.
    #[error("cannot set up event descriptors: {0}")]
    Descriptor(#[source] io::Error),
    /// A thread cannot be started.
    #[error("cannot start a thread: {0}")]
    Thread(#[source] io::Error),
    /// The vhost-user library cannot be set up.
    #[error("cannot set up the vhost-user daemon: {0}")]
    Daemon(DaemonError),
    /// The connected socket cannot be used.
    #[error("cannot use the connected socket: {0}")]
    Connected(#[source] io::Error),
}

/// Serves front-ends, one at a time, until `stop` is signalled or a connected socket closes. `stop` is never read.
///
/// Whatever a front-end does, at its end the device is as at start and every page-request group is answered.
pub fn serve(
    device: Arc<Device>,
    host: Arc<dyn Host>,
    source: Source,
    options: &Options,
    stop: &EventFd,
) -> Result<(), TransportError> {
    let memory = Memory::new(GuestMemoryMmap::new());
    let faults = FaultWorker::start(Arc::clone(&device), &*host, memory.clone(), stop)?;
    let server = Server {
        device,
        memory,
        faults,
        poll: effective_poll(options.poll),
        driver_life: Arc::clone(&options.driver_life),
    };
    match source {
        Source::Listen(listener) => server.listen(&listener, stop),
        Source::Connected(stream) => {
            let listener = relay::listen(stream).map_err(TransportError::Connected)?;
            match server.connection(listener)? {
                Ok(()) => Ok(()),
                Err(error) => Err(TransportError::Daemon(error)),
            }
        }
    }
}

/// Where the machine has one processor, watching the ring only keeps the driver from running. (How many this process
/// may use says nothing: the driver may have others.)
fn effective_poll(poll: Duration) -> Duration {
    match std::fs::read_to_string("/sys/devices/system/cpu/online") {
        Ok(online) if online.trim() == "0" => Duration::ZERO,
        _ => poll,
    }
}

/// A non-blocking eventfd.
fn new_event() -> Result<EventFd, TransportError> {
    EventFd::new(EFD_NONBLOCK | libc::EFD_CLOEXEC).map_err(TransportError::Descriptor)
}

struct Server {
    device: Arc<Device>,
    memory: Memory,
    faults: FaultWorker,
    poll: Duration,
    driver_life: Arc<DriverLife>,
}

#[derive(PartialEq, Eq)]
enum Wake {
    Connection,
    Stop,
    Time,
}

impl Server {
    fn listen(&self, listener: &UnixListener, stop: &EventFd) -> Result<(), TransportError> {
        let poller = Poller::new().map_err(TransportError::Descriptor)?;
        poller
            .add(listener.as_raw_fd(), 0)
            .and_then(|()| poller.add(stop.as_raw_fd(), 1))
            .map_err(TransportError::Descriptor)?;
        let stopping = Poller::new().map_err(TransportError::Descriptor)?;
        stopping
            .add(stop.as_raw_fd(), 1)
            .map_err(TransportError::Descriptor)?;
        loop {
            match wait(&poller, None)? {
                Wake::Stop => return Ok(()),
                Wake::Time => continue,
                Wake::Connection => {}
            }
            let accepting = listener.try_clone().map_err(TransportError::Descriptor)?;
            if let Err(error) = self.connection(accepting)? {
                log::warn!("a front-end cannot be accepted: {error}");
                // It may be for want of descriptors, and would be at once again.
                let pause = Instant::now() + ACCEPT_PAUSE;
                if wait(&stopping, Some(pause))? == Wake::Stop {
                    return Ok(());
                }
            }
        }
    }

    /// Serves the front-end that waits at the listener, until it goes. The inner error: it cannot be accepted.
    fn connection(
        &self,
        listener: UnixListener,
    ) -> Result<Result<(), DaemonError>, TransportError> {
        let faults = self.faults.shared();
        let backend = Arc::new(Backend::new(
            Arc::clone(&self.device),
            self.memory.clone(),
            Arc::clone(faults),
            self.poll,
            Arc::clone(&self.driver_life),
        ));
        // The library's own way to end its workers leaks a descriptor each; an event of ours that fails does not.
        let exit = new_event()?;
        let mut daemon = VhostUserDaemon::new(
            "vhost-user".into(),
            Arc::clone(&backend),
            self.memory.clone(),
        )
        .map_err(TransportError::Daemon)?;
        let workers = Workers {
            backend: &backend,
            exit: &exit,
        };
        for handler in daemon.get_epoll_handlers() {
            handler
                .register_listener(exit.as_raw_fd(), EventSet::IN, u64::from(EXIT))
                .map_err(TransportError::Descriptor)?;
        }
        if let Err(error) = daemon.start(&mut Listener::from(listener)) {
            return Ok(Err(error));
        }
        self.device.connect();
        log::info!("a front-end is connected");
        faults.set_connection(daemon.shutdown_handle());
        match daemon.wait() {
            Ok(())
            | Err(DaemonError::HandleRequest(
                ProtocolError::Disconnected | ProtocolError::PartialMessage,
            )) => log::info!("the front-end is gone"),
            Err(error) => log::warn!("the connection to the front-end has ended: {error}"),
        }
        faults.set_connection(None);
        faults.set_vring(None);
        drop(workers);
        // Joins the workers.
        drop(daemon);
        // What was raised so far is not for the next driver.
        self.device.service_events(None, Instant::now());
        self.device.disconnect();
        self.driver_life.front_end_is_gone();
        backend.forget_memory();
        faults.wake();
        Ok(Ok(()))
    }
}

/// Ends the worker threads of a daemon, which waits for them when it is dropped. The descriptor outlives both.
struct Workers<'a> {
    backend: &'a Backend,
    exit: &'a EventFd,
}

impl Drop for Workers<'_> {
    fn drop(&mut self) {
        self.backend.close();
        // A new eventfd is not full.
        let _ = self.exit.write(1);
    }
}

fn wait(poller: &Poller, deadline: Option<Instant>) -> Result<Wake, TransportError> {
    let mut wake = Wake::Time;
    poller
        .wait(deadline, |token| match token {
            1 => wake = Wake::Stop,
            _ if wake == Wake::Time => wake = Wake::Connection,
            _ => {}
        })
        .map_err(TransportError::Descriptor)?;
    Ok(wake)
}
