// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A connection to QEMU's monitor.

use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, socket_with};
use serde_json::{Value, json};
use vmm_sys_util::eventfd::EventFd;

use super::message::{self, Event, Message};
use crate::endpoints::Question;
use crate::os::poller::Poller;

/// How long QEMU may take to greet, and to answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// The longest line. Events have some hundred bytes.
const MAX_LINE: usize = 1 << 20;

const STOP: u64 = 0;
const SOCKET: u64 = 1;
const CHANGES: u64 = 2;

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub(super) enum ClientError {
    /// The process ends.
    #[error("stopped")]
    Stopped,
    #[error("cannot connect ({0}); start QEMU with -qmp unix:PATH,server=on,wait=off")]
    Connect(#[source] io::Error),
    #[error(
        "others wait for the monitor already; it serves one client at a time, so give this one to no other client"
    )]
    Busy,
    #[error("the connection has ended")]
    Closed,
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error(
        "no answer within {} s; the monitor serves one client at a time, so give this one to no other client",
        PATIENCE.as_secs()
    )]
    Silent,
    #[error("what is at the other end does not speak QMP")]
    NotQmp,
    #[error("QEMU refuses qmp_capabilities: {0}")]
    Refused(String),
}

/// Waits for the end of the process, for changes that QEMU is asked about, and for a socket.
pub(super) struct Waiter {
    poller: Poller,
    /// Kept open for as long as it is watched.
    _stop: EventFd,
    /// The queues have stopped, or an endpoint has come.
    changes: EventFd,
}

/// Why waiting has ended.
#[derive(PartialEq, Eq)]
enum Wake {
    /// The socket is readable.
    Socket,
    /// There may be something to ask QEMU.
    Changes,
}

impl Waiter {
    /// `changes` does not block, and is readable when there may be something to ask QEMU.
    pub fn new(stop: &EventFd, changes: EventFd) -> io::Result<Self> {
        let poller = Poller::new()?;
        let stop = stop.try_clone()?;
        poller.add(stop.as_raw_fd(), STOP)?;
        poller.add(changes.as_raw_fd(), CHANGES)?;
        Ok(Self {
            poller,
            _stop: stop,
            changes,
        })
    }

    /// Watches a socket, until it is closed.
    fn watch(&self, stream: &UnixStream) -> io::Result<()> {
        self.poller.add(stream.as_raw_fd(), SOCKET)
    }

    /// Lets time pass; an error when the process ends.
    pub fn pause(&self, time: Duration) -> Result<(), ClientError> {
        let deadline = Some(Instant::now() + time);
        loop {
            match self.wait(deadline) {
                Err(ClientError::Silent) => return Ok(()),
                other => other?,
            };
        }
    }

    /// Waits until there is something to do.
    fn wait(&self, deadline: Option<Instant>) -> Result<Wake, ClientError> {
        loop {
            let (mut stopped, mut wake) = (false, None);
            self.poller.wait(deadline, |token| match token {
                STOP => stopped = true,
                CHANGES => wake = Some(Wake::Changes),
                _ => {
                    wake.get_or_insert(Wake::Socket);
                }
            })?;
            if stopped {
                return Err(ClientError::Stopped);
            }
            if let Some(wake) = wake {
                if wake == Wake::Changes {
                    self.changes.read()?;
                }
                return Ok(wake);
            }
            if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
                return Err(ClientError::Silent);
            }
        }
    }
}

/// Connects without waiting for room in the monitor's queue: while a monitor has its one client, it accepts no other.
pub(super) fn connect(path: &Path) -> Result<UnixStream, ClientError> {
    let attempt = || {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
        rustix::net::connect(&socket, &SocketAddrUnix::new(path)?)?;
        Ok(socket.into())
    };
    attempt().map_err(|error: Errno| match error {
        Errno::AGAIN => ClientError::Busy,
        other => ClientError::Connect(other.into()),
    })
}

/// A connection on which QEMU sends events.
pub(super) struct Client {
    stream: UnixStream,
    version: String,
    /// Received, and not yet a line.
    received: Vec<u8>,
    /// So much of it holds no end of a line.
    searched: usize,
}

impl Client {
    /// Connects, and goes through the handshake. `before_events` is called before QEMU is asked for events.
    pub fn connect(
        path: &Path,
        waiter: &Waiter,
        before_events: impl FnOnce(),
    ) -> Result<Self, ClientError> {
        let stream = connect(path)?;
        waiter.watch(&stream)?;
        let mut client = Self {
            stream,
            version: String::new(),
            received: Vec::new(),
            searched: 0,
        };
        let deadline = Some(Instant::now() + PATIENCE);
        match client.answer(waiter, deadline)? {
            Message::Greeting(version) => client.version = version,
            _ => return Err(ClientError::NotQmp),
        }
        before_events();
        client.send(&json!({"execute": "qmp_capabilities"}))?;
        loop {
            match client.answer(waiter, deadline)? {
                Message::Return => return Ok(client),
                Message::Error(desc) => return Err(ClientError::Refused(desc)),
                _ => {}
            }
        }
    }

    /// Asks whether the machine runs: the answer is an event.
    pub fn ask_status(&mut self) -> io::Result<()> {
        self.send(&json!({"execute": "query-status"}))
    }

    /// Asks whether there is a device: the answer is an event.
    pub fn ask_presence(&mut self, question: &Question) -> io::Result<()> {
        // Every object has a type.
        let arguments = json!({"path": question.path, "property": "type"});
        self.send(&json!({"execute": "qom-get", "arguments": arguments, "id": question.number}))
    }

    /// Sends a command. A connection with one other answer on its way takes so little at once.
    fn send(&mut self, command: &Value) -> io::Result<()> {
        self.stream.write_all(format!("{command}\r\n").as_bytes())
    }

    /// QEMU's version.
    pub fn version(&self) -> &str {
        &self.version
    }

    /// Waits for a message, or for a change that QEMU is to be asked about: the message's event, if it is one that
    /// matters.
    pub fn event(&mut self, waiter: &Waiter) -> Result<Option<Event>, ClientError> {
        match self.message(waiter, None)? {
            Some(Message::Event(event)) => Ok(Some(event)),
            _ => Ok(None),
        }
    }

    /// Waits for a message.
    fn answer(
        &mut self,
        waiter: &Waiter,
        deadline: Option<Instant>,
    ) -> Result<Message, ClientError> {
        loop {
            if let Some(message) = self.message(waiter, deadline)? {
                return Ok(message);
            }
        }
    }

    /// `None`: there may be something to ask QEMU.
    fn message(
        &mut self,
        waiter: &Waiter,
        deadline: Option<Instant>,
    ) -> Result<Option<Message>, ClientError> {
        loop {
            if let Some(line) = self.line() {
                let message = message::parse(&line).ok_or(ClientError::NotQmp)?;
                return Ok(Some(message));
            }
            if self.received.len() >= MAX_LINE {
                return Err(ClientError::NotQmp);
            }
            if waiter.wait(deadline)? == Wake::Changes {
                return Ok(None);
            }
            let mut buffer = [0; 4096];
            match self.stream.read(&mut buffer) {
                Ok(0) => return Err(ClientError::Closed),
                Ok(count) => self.received.extend_from_slice(&buffer[..count]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// The first whole line of what was received.
    fn line(&mut self) -> Option<Vec<u8>> {
        let end = self.received[self.searched..]
            .iter()
            .position(|&byte| byte == b'\n');
        match end {
            Some(end) => {
                let end = self.searched + end;
                self.searched = 0;
                Some(self.received.drain(..=end).collect())
            }
            None => {
                self.searched = self.received.len();
                None
            }
        }
    }
}
