// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Between a front-end and one daemon of crate vhost-user-backend: two threads that carry messages and answers.
//!
//! The library (0.24) takes connections from a listener only, so it gets one of ours, whatever way the front-end came.
//! Messages are carried whole, one at a time: the library takes descriptors with the header of the message that they belong
//! to, and does not wait for the rest of one. So there is a boundary between two messages where carrying can pause: what
//! the front-end sends then waits in its socket, for another link.

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::{Builder, JoinHandle};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::io::Errno;
use vmm_sys_util::eventfd::EventFd;

use crate::os::eventfd::signal;
use crate::os::relay;
use crate::transport::guard::Guard;

/// Length in bytes of a message's header: request, flags, and length of the rest, four bytes each.
pub(super) const HEADER: usize = 12;

/// The longest rest of a message (MAX_MSG_SIZE of crate vhost).
const MAX_REST: usize = 4096;

/// Bytes of answers carried at once. They need not come in one piece.
const BUFFER: usize = 4096;

/// How long a front-end may take from the set-up of one queue to that of the next, before a line says what it may lack.
const QUEUE_PAUSE: Timespec = Timespec {
    tv_sec: 1,
    tv_nsec: 0,
};

/// Threads that have not ended yet.
pub(super) struct Remaining {
    count: AtomicU32,
    /// Written when one ends.
    news: Arc<EventFd>,
}

impl Remaining {
    pub fn new(news: &Arc<EventFd>) -> Arc<Self> {
        Arc::new(Self {
            count: AtomicU32::new(0),
            news: Arc::clone(news),
        })
    }

    /// One thread more, until the notice is dropped.
    pub fn notice(self: &Arc<Self>) -> Notice {
        self.count.fetch_add(1, Ordering::SeqCst);
        Notice(Arc::clone(self))
    }

    pub fn is_none(&self) -> bool {
        self.count.load(Ordering::SeqCst) == 0
    }
}

/// Dropped by a thread as the last thing that it does.
pub(super) struct Notice(Arc<Remaining>);

impl Drop for Notice {
    fn drop(&mut self) {
        self.0.count.fetch_sub(1, Ordering::SeqCst);
        // A full counter is readable too.
        let _ = self.0.news.write(1);
    }
}

/// A link. Once it was started, its threads end with the front-end's connection, or after a pause.
pub(super) struct Link {
    /// Our end of the library's one connection.
    library: UnixStream,
    pause: Arc<Pause>,
    begin: Sender<Guard>,
    begin_answers: Sender<()>,
    messages: JoinHandle<Option<Guard>>,
    answers: JoinHandle<()>,
}

struct Pause {
    asked: AtomicBool,
    event: OwnedFd,
}

impl Link {
    /// Makes a link, and the listener at which the library finds the front-end. Nothing is carried before
    /// [`Link::start`].
    ///
    /// # Errors
    /// A descriptor or a thread cannot be made.
    pub fn prepare(
        front_end: &UnixStream,
        remaining: &Arc<Remaining>,
    ) -> io::Result<(UnixListener, Self)> {
        let (listener, library) = relay::listen()?;
        let pause = Arc::new(Pause {
            asked: AtomicBool::new(false),
            event: eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)?,
        });
        let (begin, started) = channel();
        let (from, to) = (front_end.try_clone()?, library.try_clone()?);
        let (pausing, notice) = (Arc::clone(&pause), remaining.notice());
        let messages = spawn("vhost-user in", move || {
            let _notice = notice;
            carry_messages(&started, &from, &to, &pausing)
        })?;
        let (begin_answers, started) = channel();
        let (from, to) = (library.try_clone()?, front_end.try_clone()?);
        let (pausing, notice) = (Arc::clone(&pause), remaining.notice());
        let answers = spawn("vhost-user out", move || {
            let _notice = notice;
            if started.recv().is_ok() {
                carry_answers(from, to, &pausing);
            }
        })?;
        let link = Self {
            library,
            pause,
            begin,
            begin_answers,
            messages,
            answers,
        };
        Ok((listener, link))
    }

    /// Our end of the library's connection, until the link is started.
    pub fn library(&self) -> &UnixStream {
        &self.library
    }

    /// Begins to carry.
    pub fn start(&self, guard: Guard) {
        // A thread that is not there has panicked, and `Remaining` tells.
        let _ = self.begin.send(guard);
        let _ = self.begin_answers.send(());
    }

    /// Has the link stop between two messages. Then the library is told the end of its connection, carries out what it has,
    /// and ends; its answers are carried to the last. The front-end's connection stays open, unless it ends by itself.
    pub fn pause(&self) {
        self.pause.asked.store(true, Ordering::SeqCst);
        signal(&self.pause.event);
    }

    /// Ends a link that was never started, and the library's connection.
    pub fn discard(self) {
        // It may have ended by itself.
        let _ = self.library.shutdown(Shutdown::Both);
    }

    /// Waits for the threads, which are about to end. Returns what the messages have said if the link was paused; else the
    /// front-end's connection has ended.
    pub fn join(self) -> Option<Guard> {
        let guard = self.messages.join().ok().flatten();
        self.answers.join().ok().and(guard)
    }
}

fn spawn<T: Send + 'static>(
    name: &str,
    body: impl FnOnce() -> T + Send + 'static,
) -> io::Result<JoinHandle<T>> {
    Builder::new().name(name.into()).spawn(body)
}

/// What comes next from a front-end.
enum Next {
    Message,
    Nothing,
    Pause,
}

/// From the front-end to the library, with descriptors. Returns what the messages have said if the link was paused.
fn carry_messages(
    started: &Receiver<Guard>,
    from: &UnixStream,
    to: &UnixStream,
    pause: &Pause,
) -> Option<Guard> {
    let mut guard = started.recv().ok()?;
    let mut message = Vec::with_capacity(HEADER + MAX_REST);
    loop {
        match next(from, pause, guard.misses_event_queue()) {
            Next::Message => {}
            Next::Nothing => {
                guard.say_what_is_missing();
                continue;
            }
            Next::Pause => {
                // It may have ended by itself, which its thread tells.
                let _ = to.shutdown(Shutdown::Write);
                return Some(guard);
            }
        }
        let descriptors = match relay::receive(from, &mut message, HEADER, rest) {
            Ok(descriptors) => descriptors,
            Err(error) => {
                log::warn!("the front-end is disconnected: {error}");
                break;
            }
        };
        let Some((header, body)) = message.split_first_chunk::<HEADER>() else {
            break;
        };
        if let Err(refused) = guard.look(header, body, &descriptors) {
            log::warn!("the front-end is disconnected: {refused}");
            break;
        }
        if relay::send(to, &message, &descriptors).is_err() {
            break;
        }
    }
    relay::end(from, to);
    None
}

/// Waits for a message, or the end of the connection, which is found by receiving; a pause comes first. With `impatient`
/// it does not wait for long.
fn next(from: &UnixStream, pause: &Pause, impatient: bool) -> Next {
    let mut descriptors = [
        PollFd::new(&pause.event, PollFlags::IN),
        PollFd::new(from, PollFlags::IN),
    ];
    loop {
        match poll(&mut descriptors, impatient.then_some(&QUEUE_PAUSE)) {
            Err(Errno::INTR) => {}
            _ if pause.asked.load(Ordering::SeqCst) => return Next::Pause,
            Ok(0) => return Next::Nothing,
            _ => return Next::Message,
        }
    }
}

/// The length of the rest of a message. One that is too long is passed on without it: the library refuses it.
fn rest(header: &[u8]) -> io::Result<usize> {
    let length = header.last_chunk().map_or(0, |&l| u32::from_ne_bytes(l));
    let rest = usize::try_from(length).unwrap_or(usize::MAX);
    Ok(if rest <= MAX_REST { rest } else { 0 })
}

/// From the library to the front-end. No answer has descriptors with the features that we offer.
fn carry_answers(mut from: UnixStream, mut to: UnixStream, pause: &Pause) {
    let mut buffer = [0; BUFFER];
    while let Ok(length @ 1..) = from.read(&mut buffer) {
        if to
            .write_all(buffer.get(..length).unwrap_or_default())
            .is_err()
        {
            relay::end(&from, &to);
            return;
        }
    }
    if !pause.asked.load(Ordering::SeqCst) {
        relay::end(&from, &to);
    }
}
