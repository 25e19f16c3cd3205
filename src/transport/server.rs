// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Front-ends, one after another: a connection's set-up, its end, and what is told the device at both.
//!
//! The thread here never waits for anything that a front-end can hold up. Threads that do are interrupted at the end.

use std::io;
use std::net::Shutdown;
use std::os::fd::AsRawFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use vhost::vhost_user::{BackendReqHandler, Error as ProtocolError};
use vmm_sys_util::eventfd::EventFd;

use crate::device::Device;
use crate::os::poller::Poller;
use crate::os::relay;
use crate::os::thread::Thread;
use crate::transport::backend::Backend;
use crate::transport::driver_life::DriverLife;
use crate::transport::fault_worker::FaultWorker;
use crate::transport::memory::SharedMemory;
use crate::transport::request_worker::RequestWorker;
use crate::transport::{Hangup, Memory, TransportError};

const STOP: u64 = 0;
const SOCKET: u64 = 1;

/// How long to wait before another front-end is accepted if that has just failed.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// How long a front-end may take from the set-up of one queue to that of the next, before a line says what it may lack.
const QUEUE_PAUSE: Timespec = Timespec {
    tv_sec: 1,
    tv_nsec: 0,
};

/// Serves connections of one device.
pub(super) struct Server {
    pub device: Arc<Device>,
    pub memory: Memory,
    pub faults: FaultWorker,
    pub poll: Duration,
    pub driver_life: Arc<DriverLife>,
}

/// What the thread of messages comes to. The backend is handed back so that guest memory goes after the device's reset.
type Messages = (Result<(), ProtocolError>, Arc<Mutex<Backend>>);

impl Server {
    /// Serves one front-end after another until `stop` is readable.
    ///
    /// # Errors
    /// The listening socket cannot be waited for.
    pub fn listen(&self, listener: &UnixListener, stop: &EventFd) -> Result<(), TransportError> {
        // Whoever shares the socket may accept the front-end that we are woken for.
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
        let poller = waiter(stop)?;
        poller.add_hangup(line.as_raw_fd(), SOCKET)?;
        let events = self.faults.new_vring()?;
        let worker = RequestWorker::start(
            Arc::clone(&self.device),
            self.memory.clone(),
            Arc::clone(self.faults.shared()),
            self.poll,
            Arc::clone(&self.driver_life),
            Hangup(Arc::clone(&line)),
        )?;
        let backend = Arc::new(Mutex::new(Backend::new(
            Arc::clone(&self.device),
            SharedMemory::new(self.memory.clone()),
            Arc::clone(worker.shared()),
            Arc::clone(self.faults.shared()),
            events.clone(),
            Arc::clone(&self.driver_life),
        )));
        self.device.connect();
        self.faults.set_vring(events);
        let hangup = Hangup(Arc::clone(&line));
        let messages = Thread::spawn("vhost-user", move || {
            let result = answer(stream, &hangup.0, &backend);
            drop(hangup);
            (result, backend)
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
        // With the backend guest memory goes, which no domain maps any more.
        let end = ended.map(|(end, _backend)| end);
        self.faults.shared().wake();
        end
    }

    /// Waits for the end of a connection. Returns what is to go after the device's reset, too.
    fn follow(
        &self,
        poller: &Poller,
        line: &UnixStream,
        worker: &RequestWorker,
        messages: Thread<Messages>,
    ) -> (End, Option<Arc<Mutex<Backend>>>) {
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
            Ok((result, backend)) => (End::of(result, stopped), Some(backend)),
            Err(_) => (End::Panicked, None),
        }
    }
}

/// How a connection ended.
enum End {
    /// The front-end closed it.
    Gone,
    /// The process ends.
    Stopped,
    /// A message was refused.
    Refused(String),
    /// The thread of messages panicked.
    Panicked,
}

impl End {
    fn of(result: Result<(), ProtocolError>, stopped: bool) -> Self {
        match result {
            _ if stopped => Self::Stopped,
            Ok(())
            | Err(
                ProtocolError::Disconnected
                | ProtocolError::PartialMessage
                | ProtocolError::SocketBroken(_),
            ) => Self::Gone,
            Err(ProtocolError::ReqHandlerError(error)) => Self::Refused(error.to_string()),
            Err(error) => Self::Refused(error.to_string()),
        }
    }
}

/// Answers messages until the connection ends.
fn answer(
    stream: UnixStream,
    line: &UnixStream,
    backend: &Arc<Mutex<Backend>>,
) -> Result<(), ProtocolError> {
    let mut messages = BackendReqHandler::from_stream(stream, Arc::clone(backend));
    let mut said = false;
    loop {
        if !said && misses_event_queue(backend) && !is_readable(line) {
            said = true;
            log::warn!(
                "the front-end has set up the request queue alone, so the guest finds no IOMMU: QEMU's \
                 vhost-user-test-device-pci needs num_vqs=2"
            );
        }
        relay::peek(line).map_err(ProtocolError::ReqHandlerError)?;
        messages.handle_request()?;
    }
}

fn misses_event_queue(backend: &Mutex<Backend>) -> bool {
    backend
        .lock()
        .is_ok_and(|backend| backend.misses_event_queue())
}

/// Whether a message comes within a short time.
fn is_readable(line: &UnixStream) -> bool {
    let mut descriptors = [PollFd::new(line, PollFlags::IN)];
    poll(&mut descriptors, Some(&QUEUE_PAUSE)) != Ok(0)
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
