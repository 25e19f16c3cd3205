// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Front-ends, one after another: the set-up and the end of a connection, and what they mean to the device.
//!
//! The thread here never waits for anything that a front-end can hold up. Threads that do are interrupted at the end.

use std::io;
use std::net::Shutdown;
use std::os::fd::AsRawFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use vhost::vhost_user::{Error as ProtocolError, Listener};
use vhost_user_backend::{Error as DaemonError, VhostUserDaemon};
use vm_memory::GuestMemoryMmap;
use vmm_sys_util::eventfd::EventFd;

use crate::device::Device;
use crate::os::poller::Poller;
use crate::os::thread::Thread;
use crate::transport::backend::Backend;
use crate::transport::driver_life::DriverLife;
use crate::transport::fault_worker::FaultWorker;
use crate::transport::request_worker::RequestWorker;
use crate::transport::vring::handing_over;
use crate::transport::{Hangup, Memory, TransportError, guard};

const STOP: u64 = 0;
const SOCKET: u64 = 1;

/// How long to wait before another front-end is accepted if that has just failed.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Serves connections of one device.
pub(super) struct Server {
    pub device: Arc<Device>,
    pub memory: Memory,
    pub faults: FaultWorker,
    pub poll: Duration,
    pub driver_life: Arc<DriverLife>,
}

/// What the thread of messages comes to.
type Messages = Result<(), DaemonError>;

impl Server {
    /// Serves one front-end after another until `stop` is readable.
    ///
    /// # Errors
    /// The listening socket cannot be waited for.
    pub fn listen(&self, listener: &UnixListener, stop: &EventFd) -> Result<(), TransportError> {
        // Another process that shares the socket may accept the front-end that woke this thread.
        listener
            .set_nonblocking(true)
            .map_err(TransportError::Descriptor)?;
        let poller = waiter(stop).map_err(TransportError::Descriptor)?;
        poller
            .add(listener.as_raw_fd(), SOCKET)
            .map_err(TransportError::Descriptor)?;
        let stopping = waiter(stop).map_err(TransportError::Descriptor)?;
        let mut refused = String::new();
        loop {
            if is_stopped(&poller, None) {
                return Ok(());
            }
            let served = match listener.accept() {
                Ok((stream, _)) => self.connection(stream, stop),
                Err(error) => match error.kind() {
                    io::ErrorKind::WouldBlock
                    | io::ErrorKind::ConnectionAborted
                    | io::ErrorKind::Interrupted => continue,
                    _ => Err(error),
                },
            };
            match served {
                Ok(()) => refused.clear(),
                Err(error) => {
                    // A want of descriptors, of memory or of threads lasts for a while: one line, and no hurry.
                    let text = error.to_string();
                    if text != refused {
                        log::warn!("a front-end is refused: {text}; the next one is served");
                        refused = text;
                    }
                    if is_stopped(&stopping, Some(Instant::now() + ACCEPT_PAUSE)) {
                        return Ok(());
                    }
                }
            }
        }
    }

    /// Serves a front-end until it goes or `stop` is readable. Then nothing is left of the connection.
    ///
    /// # Errors
    /// A descriptor or a thread cannot be made. The front-end is disconnected.
    pub fn connection(&self, stream: UnixStream, stop: &EventFd) -> io::Result<()> {
        match self.serve(stream, stop)? {
            End::Gone => log::info!("the front-end is gone"),
            End::Stopped => log::info!("the front-end is disconnected"),
            End::Refused(why) => log::warn!("the front-end is disconnected: {why}"),
            End::Panicked => {
                log::error!("the front-end is disconnected: its thread has panicked");
            }
        }
        Ok(())
    }

    fn serve(&self, stream: UnixStream, stop: &EventFd) -> io::Result<End> {
        let line = Arc::new(stream.try_clone()?);
        let hangup = Hangup(Arc::clone(&line));
        let poller = waiter(stop)?;
        poller.add_hangup(line.as_raw_fd(), SOCKET)?;
        let events = self.faults.new_vring(Arc::clone(&line))?;
        let worker = RequestWorker::start(
            Arc::clone(&self.device),
            self.memory.clone(),
            Arc::clone(self.faults.shared()),
            self.poll,
            Arc::clone(&self.driver_life),
            Hangup(Arc::clone(&line)),
        )?;
        let backend = Arc::new(Backend::new(
            Arc::clone(&self.device),
            self.memory.clone(),
            Arc::clone(worker.shared()),
            Arc::clone(self.faults.shared()),
            events.clone(),
            Arc::clone(&self.driver_life),
        ));
        let mut daemon = handing_over(backend.vrings(), || {
            // Its memory is not what the workers see: that was checked.
            let unchecked = Memory::new(GuestMemoryMmap::new());
            VhostUserDaemon::new("vhost-user".to_owned(), Arc::clone(&backend), unchecked)
        })
        .map_err(|error| io::Error::other(error.to_string()))?;
        let mut listener = Listener::from(guard::listen(stream)?);
        self.device.connect();
        self.faults.set_vring(events);
        let messages = Thread::spawn("vhost-user end", move || {
            let _hangup = hangup;
            daemon.start(&mut listener)?;
            daemon.wait()
        });
        let ended = messages.map(|messages| {
            log::info!("a front-end is connected");
            self.follow(&poller, &line, &worker, messages)
        });
        self.faults.forget_vring();
        drop(worker);
        // What was raised so far is not for the next driver.
        self.device.service_events(None, Instant::now());
        self.device.disconnect();
        self.driver_life.front_end_is_gone();
        backend.forget_memory();
        self.faults.shared().wake();
        ended
    }

    /// Waits for the end of a connection.
    fn follow(
        &self,
        poller: &Poller,
        line: &UnixStream,
        worker: &RequestWorker,
        messages: Thread<Messages>,
    ) -> End {
        let stopped = is_stopped(poller, None);
        if stopped {
            // It may have gone by itself.
            let _ = line.shutdown(Shutdown::Both);
        }
        // A message may wait for a queue, whose worker is in a call that the front-end holds up.
        while !messages.ends_soon() {
            worker.leave_vring();
            self.faults.leave_vring();
            messages.interrupt();
        }
        match messages.join() {
            Ok(result) => End::of(result, stopped),
            Err(_) => End::Panicked,
        }
    }
}

/// How a connection ended.
enum End {
    /// The front-end closed it, or the guard has said why.
    Gone,
    /// The process ends.
    Stopped,
    /// A message was refused.
    Refused(String),
    /// A thread of messages panicked.
    Panicked,
}

impl End {
    fn of(result: Messages, stopped: bool) -> Self {
        match result {
            Err(DaemonError::WaitDaemon(_)) => Self::Panicked,
            _ if stopped => Self::Stopped,
            Ok(())
            | Err(DaemonError::HandleRequest(
                ProtocolError::Disconnected
                | ProtocolError::PartialMessage
                | ProtocolError::SocketBroken(_),
            )) => Self::Gone,
            Err(DaemonError::HandleRequest(ProtocolError::ReqHandlerError(error))) => {
                Self::Refused(error.to_string())
            }
            Err(error) => Self::Refused(error.to_string()),
        }
    }
}

/// Waits for `stop`, and for what is added.
fn waiter(stop: &EventFd) -> io::Result<Poller> {
    let poller = Poller::new()?;
    poller.add(stop.as_raw_fd(), STOP)?;
    Ok(poller)
}

/// Waits for an event or the deadline. Returns whether it was the end of the process.
fn is_stopped(poller: &Poller, deadline: Option<Instant>) -> bool {
    let (mut stopped, mut woken) = (false, false);
    while !woken {
        let waited = poller.wait(deadline, |token| {
            woken = true;
            stopped |= token == STOP;
        });
        if let Err(error) = waited {
            log::error!("cannot wait for front-ends: {error}");
            return true;
        }
        woken |= deadline.is_some_and(|deadline| deadline <= Instant::now());
    }
    stopped
}
