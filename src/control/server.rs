// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The thread that serves the control socket.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixListener;
use std::sync::Arc;
use std::task::{Wake, Waker};
use std::thread::{self, JoinHandle};

use parking_lot::Mutex;
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::control::connection::{Closed, Connection, refuse};
use crate::control::execute::Context;

/// Connections at a time.
const MAX_CONNECTIONS: usize = 64;
/// How long to leave the listener alone after it failed to accept, such as for want of descriptors.
const ACCEPT_PAUSE_MS: i32 = 100;

const LISTENER: u64 = 0;
const STOP: u64 = 1;
const READY: u64 = 2;
/// The tokens of connections begin here; none is used twice.
const FIRST_CONNECTION: u64 = 3;

/// Why the control socket cannot be served.
#[derive(Debug, thiserror::Error)]
#[error("cannot serve the control socket: {0}")]
pub struct ControlError(#[from] io::Error);

/// The thread that serves the control socket. Ends when `stop` is readable.
pub struct Control(JoinHandle<()>);

impl Control {
    /// Starts the thread. `stop` is never read: other threads wait for it too.
    ///
    /// # Errors
    /// A descriptor or the thread cannot be made.
    pub fn start(
        listener: UnixListener,
        context: Context,
        stop: &EventFd,
    ) -> Result<Self, ControlError> {
        listener.set_nonblocking(true)?;
        let mut server = Server::new(listener, context, stop.try_clone()?)?;
        let thread = thread::Builder::new()
            .name("control".to_owned())
            .spawn(move || {
                if let Err(error) = server.run() {
                    log::error!("the control socket is no longer served: {error}");
                }
            })?;
        Ok(Self(thread))
    }

    /// Waits for its end.
    pub fn join(self) {
        if self.0.join().is_err() {
            log::error!("the control thread panicked");
        }
    }
}

/// Commands that can go on, by connection and key.
struct Ready {
    list: Mutex<Vec<(u64, u64)>>,
    event: EventFd,
}

impl Ready {
    fn take(&self) -> Vec<(u64, u64)> {
        // Before the list is looked at, so that what is added later is announced again.
        let _ = self.event.read();
        std::mem::take(&mut *self.list.lock())
    }
}

struct CommandWaker {
    ready: Arc<Ready>,
    connection: u64,
    key: u64,
}

impl Wake for CommandWaker {
    fn wake(self: Arc<Self>) {
        self.ready.list.lock().push((self.connection, self.key));
        // Fails only if the counter is full, and then it is readable as it should be.
        let _ = self.ready.event.write(1);
    }
}

impl Ready {
    fn waker(self: &Arc<Self>, connection: u64, key: u64) -> Waker {
        Waker::from(Arc::new(CommandWaker {
            ready: Arc::clone(self),
            connection,
            key,
        }))
    }
}

struct Server {
    epoll: Epoll,
    listener: UnixListener,
    /// Kept open for as long as it is watched.
    _stop: EventFd,
    context: Context,
    ready: Arc<Ready>,
    connections: BTreeMap<u64, (Connection, EventSet)>,
    next_token: u64,
    accepting: bool,
}

impl Server {
    fn new(listener: UnixListener, context: Context, stop: EventFd) -> io::Result<Self> {
        let epoll = Epoll::new()?;
        let ready = Arc::new(Ready {
            list: Mutex::default(),
            event: EventFd::new(EFD_NONBLOCK)?,
        });
        for (fd, token) in [
            (listener.as_raw_fd(), LISTENER),
            (stop.as_raw_fd(), STOP),
            (ready.event.as_raw_fd(), READY),
        ] {
            epoll.ctl(
                ControlOperation::Add,
                fd,
                EpollEvent::new(EventSet::IN, token),
            )?;
        }
        Ok(Self {
            epoll,
            listener,
            _stop: stop,
            context,
            ready,
            connections: BTreeMap::new(),
            next_token: FIRST_CONNECTION,
            accepting: true,
        })
    }

    fn run(&mut self) -> io::Result<()> {
        let mut events = [EpollEvent::default(); 16];
        loop {
            let timeout = if self.accepting { -1 } else { ACCEPT_PAUSE_MS };
            let count = match self.epoll.wait(timeout, &mut events) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                other => other?,
            };
            if count == 0 {
                self.set_accepting(true)?;
            }
            for event in &events[..count] {
                match event.data() {
                    LISTENER => self.accept()?,
                    STOP => return Ok(()),
                    READY => self.resume(),
                    token => self.serve(token, event.event_set()),
                }
            }
        }
    }

    fn set_accepting(&mut self, accepting: bool) -> io::Result<()> {
        let interest = if accepting {
            EventSet::IN
        } else {
            EventSet::empty()
        };
        self.accepting = accepting;
        self.epoll.ctl(
            ControlOperation::Modify,
            self.listener.as_raw_fd(),
            EpollEvent::new(interest, LISTENER),
        )
    }

    fn accept(&mut self) -> io::Result<()> {
        let stream = match self.listener.accept() {
            Ok((stream, _)) => stream,
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::WouldBlock
                        | io::ErrorKind::Interrupted
                        | io::ErrorKind::ConnectionAborted
                ) =>
            {
                return Ok(());
            }
            Err(error) => {
                log::warn!("control: cannot accept a connection: {error}");
                return self.set_accepting(false);
            }
        };
        if stream.set_nonblocking(true).is_err() {
            return Ok(());
        }
        if self.connections.len() >= MAX_CONNECTIONS {
            refuse(&stream, "too many connections: close one first");
            return Ok(());
        }
        let token = self.next_token;
        let added = self.epoll.ctl(
            ControlOperation::Add,
            stream.as_raw_fd(),
            EpollEvent::new(EventSet::IN, token),
        );
        if let Err(error) = added {
            log::warn!("control: cannot watch a connection: {error}");
            return Ok(());
        }
        self.next_token += 1;
        self.connections
            .insert(token, (Connection::new(stream), EventSet::IN));
        Ok(())
    }

    fn serve(&mut self, token: u64, events: EventSet) {
        let Some((connection, _)) = self.connections.get_mut(&token) else {
            return;
        };
        let gone = events.intersects(EventSet::HANG_UP | EventSet::ERROR);
        let result = if gone && !connection.wants_input() {
            Err(Closed)
        } else {
            let readable = gone || events.contains(EventSet::IN);
            let ready = &self.ready;
            connection.serve(readable, &self.context, &|key| ready.waker(token, key))
        };
        self.after(token, result);
    }

    fn resume(&mut self) {
        for (token, key) in self.ready.take() {
            let Some((connection, _)) = self.connections.get_mut(&token) else {
                continue;
            };
            let ready = &self.ready;
            let result = connection.resume(key, &self.context, &|key| ready.waker(token, key));
            self.after(token, result);
        }
    }

    /// Closes the connection, or watches it for what it wants now.
    fn after(&mut self, token: u64, result: Result<(), Closed>) {
        let Some((connection, watched)) = self.connections.get_mut(&token) else {
            return;
        };
        let mut wanted = EventSet::empty();
        wanted.set(EventSet::IN, connection.wants_input());
        wanted.set(EventSet::OUT, connection.wants_output());
        let fd = connection.stream().as_raw_fd();
        let kept = result.is_ok()
            && (wanted == *watched
                || self
                    .epoll
                    .ctl(ControlOperation::Modify, fd, EpollEvent::new(wanted, token))
                    .is_ok());
        *watched = wanted;
        if !kept {
            // Closing the descriptor ends the watching. Groups that its commands raised stay outstanding:
            // their requester is the endpoint, not the connection.
            self.connections.remove(&token);
        }
    }
}
