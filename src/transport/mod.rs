// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! vhost-user: carries the device to a front-end.
//!
//! ```text
//! front-end ── server, connection ── link, guard, recorder ── (vhost-user-backend) ── backend ── memory ── device, host
//! request queue ── ring, chain ── request_worker (polling, lifecycle) ── batch ── device
//! event queue ── ring, chain ── fault_worker ── event_queue ── device, host
//! ```
//!
//! Crate vhost-user-backend answers messages and maps guest memory. It is behind a guard, and its vrings are ours: see
//! `guard` and `vring`. It has no worker; both queues are served by our own. Under a connection its daemon can be replaced
//! (`connection`, `daemon`, `recorder`).
//!
//! Threads of a connection: the *request worker*, two that carry messages through the guard, the library's, and one that waits
//! for its end. The *fault worker* outlives connections; so does the device. The thread of [`serve`] waits for connections,
//! their ends and the end of the process, and for nothing that a front-end can hold up.

mod backend;
pub(crate) mod batch;
mod chain;
mod connection;
mod daemon;
mod driver_life;
pub(crate) mod event_queue;
mod fault_worker;
mod guard;
mod guest;
mod lifecycle;
mod link;
mod memory;
#[cfg(any(odd_bits, test))]
#[cfg_attr(
    not(odd_bits),
    expect(dead_code, reason = "only its unit tests use it")
)]
mod odd_bits;
pub(crate) mod polling;
mod reattach;
mod recorder;
pub(crate) mod request_worker;
pub(crate) mod ring;
mod server;
mod vring;

use std::io;
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::time::Duration;

use vm_memory::{GuestMemoryAtomic, GuestMemoryMmap};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::device::Device;
use crate::host::Host;
use crate::transport::fault_worker::FaultWorker;
use crate::transport::server::Server;

pub use driver_life::{DriverLife, Stop};
pub use reattach::{Reattach, ReattachError, Reattached};

/// The most entries that a virtqueue can have.
pub const MAX_QUEUE_SIZE: usize = 1024;

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
    /// Who asks for reattachments.
    pub reattach: Arc<Reattach>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            poll: Duration::from_micros(200),
            driver_life: Arc::default(),
            reattach: Arc::default(),
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
    /// The connected socket cannot be served.
    #[error("cannot serve the connected socket: {0}")]
    Connected(#[source] io::Error),
}

/// Serves front-ends, one at a time, until `stop` is signalled or a connected socket closes. `stop` is never read.
///
/// Whatever a front-end does, at its end the device is as at start and every page-request group is answered. A front-end
/// that cannot be served, as the process lacks descriptors, memory or threads, is disconnected, and the next one is served.
///
/// A listening socket is made non-blocking and a connected one blocking, also for those that share it.
///
/// # Errors
/// The fault worker cannot be set up, or the front-end of a connected socket cannot be served.
pub fn serve(
    device: Arc<Device>,
    host: Arc<dyn Host>,
    source: Source,
    options: &Options,
    stop: &EventFd,
) -> Result<(), TransportError> {
    let memory = Memory::new(GuestMemoryMmap::new());
    let faults = FaultWorker::start(Arc::clone(&device), &*host, memory.clone())?;
    let server = Server {
        device,
        memory,
        faults,
        poll: effective_poll(options.poll),
        driver_life: Arc::clone(&options.driver_life),
        reattach: Arc::clone(&options.reattach),
    };
    match source {
        Source::Listen(listener) => server.listen(&listener, stop),
        Source::Connected(stream) => stream
            .set_nonblocking(false)
            .and_then(|()| server.connection(stream, stop))
            .map_err(TransportError::Connected),
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

/// A non-blocking eventfd of our own.
fn new_event() -> io::Result<EventFd> {
    EventFd::new(EFD_NONBLOCK | libc::EFD_CLOEXEC)
}

/// Ends a connection when dropped, so that a thread of it that fails or panics takes the connection with it.
struct Hangup {
    line: Arc<UnixStream>,
    armed: bool,
}

impl Hangup {
    fn new(line: Arc<UnixStream>) -> Self {
        Self { line, armed: true }
    }

    /// The thread was told to end, and the connection may go on.
    fn disarm(mut self) {
        self.armed = false;
    }
}

impl Drop for Hangup {
    fn drop(&mut self) {
        if self.armed {
            // It may have ended already.
            let _ = self.line.shutdown(Shutdown::Both);
        }
    }
}
