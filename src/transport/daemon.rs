// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! One daemon of crate vhost-user-backend, with all that lives as long as it: its link to the front-end, its vrings, and the
//! worker of the request queue. A connection has one after another.

use std::io;
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use parking_lot::Mutex;
use vhost::vhost_user::{Error as ProtocolError, Listener};
use vhost_user_backend::{Error as DaemonError, VhostUserDaemon};
use vm_memory::GuestMemoryMmap;
use vmm_sys_util::eventfd::EventFd;

use crate::os::thread::Thread;
use crate::spec::NUM_QUEUES;
use crate::transport::Memory;
use crate::transport::backend::Backend;
use crate::transport::guard::Guard;
use crate::transport::lifecycle::Lifecycle;
use crate::transport::link::{Link, Remaining};
use crate::transport::memory::SharedMemory;
use crate::transport::request_worker::RequestWorker;
use crate::transport::server::Server;
use crate::transport::vring::{RingState, Vring, handing_over};

/// What the thread of messages comes to.
type Messages = Result<(), DaemonError>;

pub(super) struct Daemon {
    link: Link,
    backend: Arc<Backend>,
    worker: RequestWorker,
    events: Vring,
    messages: Thread<Messages>,
    remaining: Arc<Remaining>,
}

/// What a daemon that was paused leaves to the next.
pub(super) struct Legacy {
    guard: Guard,
    lifecycle: Lifecycle,
    rings: [RingState; NUM_QUEUES],
}

impl Legacy {
    /// How many messages the front-end has sent.
    pub fn messages(&self) -> u64 {
        self.guard.recorder().messages()
    }
}

/// How a daemon ended.
pub(super) enum End {
    /// It was paused, and has carried out each message that came before.
    Paused(Box<Legacy>),
    /// The front-end closed the connection, or the guard has said why.
    Gone,
    /// A message was refused.
    Refused(String),
    /// A thread of messages panicked.
    Panicked,
}

impl Daemon {
    /// Makes a daemon for the connection `line`. It gets no message before [`Daemon::start`], and serves no queue. `news` is
    /// written when a thread of it ends.
    ///
    /// # Errors
    /// A descriptor or a thread cannot be made. Nothing has changed.
    pub fn prepare(
        server: &Server,
        line: &Arc<UnixStream>,
        memory: &Arc<Mutex<SharedMemory>>,
        news: &Arc<EventFd>,
    ) -> io::Result<Self> {
        let events = server.faults.new_vring(Arc::clone(line))?;
        let worker = RequestWorker::start(
            Arc::clone(&server.device),
            server.memory.clone(),
            Arc::clone(server.faults.shared()),
            server.poll,
            Arc::clone(&server.driver_life),
            line,
        )?;
        let backend = Arc::new(Backend::new(
            Arc::clone(&server.device),
            Arc::clone(memory),
            Arc::clone(worker.shared()),
            Arc::clone(server.faults.shared()),
            events.clone(),
            Arc::clone(&server.driver_life),
        ));
        let mut library = handing_over(backend.vrings(), || {
            // Its memory is not what the workers see: that was checked.
            let unchecked = Memory::new(GuestMemoryMmap::new());
            VhostUserDaemon::new("vhost-user".to_owned(), Arc::clone(&backend), unchecked)
        })
        .map_err(|error| io::Error::other(error.to_string()))?;
        let remaining = Remaining::new(news);
        let (listener, link) = Link::prepare(line, &remaining)?;
        // The link has connected already.
        library
            .start(&mut Listener::from(listener))
            .map_err(|error| io::Error::other(error.to_string()))?;
        let notice = remaining.notice();
        let messages = Thread::spawn("vhost-user end", move || {
            let _notice = notice;
            library.wait()
        })?;
        Ok(Self {
            link,
            backend,
            worker,
            events,
            messages,
            remaining,
        })
    }

    /// Serves a front-end that has said what the guard knows.
    pub fn start(&self, server: &Server, guard: Guard) {
        server.faults.set_vring(self.events.clone());
        self.link.start(guard);
    }

    /// Goes on where another daemon was paused, and then as [`Daemon::start`].
    ///
    /// # Errors
    /// The library does not take what the one before it took.
    pub fn take_over(
        &self,
        server: &Server,
        legacy: Legacy,
        memory: &Mutex<SharedMemory>,
    ) -> io::Result<()> {
        // A copy: the library's thread takes the lock.
        let map = memory.lock().map().clone();
        self.backend.begin_replay();
        let recorder = legacy.guard.recorder();
        recorder.replay(self.link.library(), &map)?;
        self.backend.end_replay();
        self.worker.take_over(legacy.lifecycle);
        for (vring, ring) in self.backend.vrings().iter().zip(legacy.rings) {
            vring.take_over(ring)?;
        }
        self.start(server, legacy.guard);
        Ok(())
    }

    /// Has it end between two messages. The front-end's connection stays open, unless it ends by itself.
    pub fn pause(&self) {
        self.link.pause();
    }

    /// Whether all of its threads have ended, but the request worker.
    pub fn is_over(&self) -> bool {
        self.remaining.is_none()
    }

    /// Ends a daemon that was never started, and waits for its end.
    pub fn discard(self) {
        self.link.discard();
        while !self.messages.ends_soon() {
            self.worker.leave_vring();
            self.messages.interrupt();
        }
    }

    /// Waits for the end of a daemon whose connection has ended or which is over. Whatever holds it up is interrupted.
    pub fn end(self, server: &Server) -> End {
        // A message may wait for a queue, whose worker is in a call that the front-end holds up.
        while !self.messages.ends_soon() {
            self.worker.leave_vring();
            server.faults.leave_vring();
            self.messages.interrupt();
        }
        let result = self.messages.join();
        server.faults.forget_vring();
        // A paused one has threads that are over; the threads of another one end with its connection.
        let guard = match self.remaining.is_none() {
            true => self.link.join(),
            false => None,
        };
        let lifecycle = self.worker.end();
        let Ok(result) = result else {
            return End::Panicked;
        };
        match (End::of(result), guard) {
            (End::Gone, Some(guard)) => {
                let [requests, events] = self.backend.vrings();
                End::Paused(Box::new(Legacy {
                    guard,
                    lifecycle,
                    rings: [requests.give_up(), events.give_up()],
                }))
            }
            (end, _) => end,
        }
    }
}

impl End {
    fn of(result: Messages) -> Self {
        match result {
            Err(DaemonError::WaitDaemon(_)) => Self::Panicked,
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
