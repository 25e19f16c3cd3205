// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The life of a connection: one daemon of the library after another, for one front-end.
//!
//! # Reattachment
//! The next daemon is made first, so a want of descriptors or threads changes nothing. Then the link is paused between two
//! messages, the daemon before carries out what it has and ends, its workers let go between two batches, and time stands
//! still for page requests. The next one is told what the library has to know (`recorder`), and takes the rings where they
//! are (`vring::RingState`). What the front-end and its guest do meanwhile waits in the socket and in the rings. The device
//! is not told: it keeps domains, mappings, page requests and what it knows of the driver.
//!
//! The thread here waits for nothing that a front-end can hold up, but the end of what it interrupts.

use std::io;
use std::net::Shutdown;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Instant;

use parking_lot::Mutex;
use vmm_sys_util::eventfd::EventFd;

use crate::os::poller::Poller;
use crate::transport::daemon::{Daemon, End};
use crate::transport::guard::Guard;
use crate::transport::memory::SharedMemory;
use crate::transport::new_event;
use crate::transport::reattach::{Asked, ReattachError, Reattached};
use crate::transport::server::Server;

const STOP: u64 = 0;
const SOCKET: u64 = 1;
const NEWS: u64 = 2;

/// How a connection ended.
pub(super) enum Ended {
    /// The front-end closed it, or the guard has said why.
    Gone,
    /// The process ends.
    Stopped,
    /// A message was refused, or cannot be told to another daemon.
    Refused(String),
    /// A thread of messages panicked.
    Panicked,
}

pub(super) struct Connection<'a> {
    server: &'a Server,
    line: Arc<UnixStream>,
    memory: Arc<Mutex<SharedMemory>>,
    /// Written when a thread has ended, and when somebody asks for a reattachment.
    news: Arc<EventFd>,
    poller: Poller,
}

/// A daemon that takes over from one that is paused.
struct Next {
    daemon: Daemon,
    asked: Asked,
}

/// What has happened to a connection.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Event {
    Stop,
    Hangup,
    News,
}

impl<'a> Connection<'a> {
    /// # Errors
    /// A descriptor cannot be made.
    pub fn new(server: &'a Server, stream: UnixStream, stop: &EventFd) -> io::Result<Self> {
        let line = Arc::new(stream);
        let news = Arc::new(new_event()?);
        let poller = Poller::new()?;
        poller.add(stop.as_raw_fd(), STOP)?;
        poller.add_hangup(line.as_raw_fd(), SOCKET)?;
        poller.add(news.as_raw_fd(), NEWS)?;
        Ok(Self {
            server,
            line,
            memory: Arc::new(Mutex::new(SharedMemory::new(server.memory.clone()))),
            news,
            poller,
        })
    }

    /// Serves the front-end until it goes or the process ends. Then nothing is left of the connection.
    ///
    /// # Errors
    /// A descriptor or a thread cannot be made.
    pub fn serve(self) -> io::Result<Ended> {
        let server = self.server;
        let daemon = self.prepare()?;
        server.device.connect();
        daemon.start(server, Guard::default());
        server.reattach.connected(&self.news);
        log::info!("a front-end is connected");
        let ended = self.follow(daemon);
        server.reattach.disconnected();
        // What was raised so far is not for the next driver.
        server.device.service_events(None, Instant::now());
        server.device.disconnect();
        server.driver_life.front_end_is_gone();
        self.forget_memory();
        server.faults.shared().wake();
        Ok(ended)
    }

    fn prepare(&self) -> io::Result<Daemon> {
        Daemon::prepare(self.server, &self.line, &self.memory, &self.news)
    }

    /// Takes guest memory away. No worker has a queue any more.
    fn forget_memory(&self) {
        let mut memory = self.memory.lock();
        memory.clear();
        memory.tell(&self.server.device);
    }

    /// Serves with one daemon after another, to the end of the connection and of the last one.
    fn follow(&self, mut daemon: Daemon) -> Ended {
        let mut next: Option<Next> = None;
        let event = loop {
            match self.wait() {
                Event::News => {}
                end => break end,
            }
            if daemon.is_over() {
                let Some(next) = next.take() else {
                    // Its threads have ended the connection as they left, but for one that panicked.
                    break Event::Hangup;
                };
                match self.replace(daemon, next) {
                    Ok(other) => daemon = other,
                    Err(ended) => return ended,
                }
            }
            if next.is_none() {
                next = self.prepare_next();
                if next.is_some() {
                    daemon.pause();
                }
            }
        };
        self.hang_up();
        if let Some(next) = next {
            next.asked.answer(&Err(ReattachError::Gone));
            next.daemon.discard();
        }
        match (daemon.end(self.server), event) {
            (End::Panicked, _) => Ended::Panicked,
            (_, Event::Stop) => Ended::Stopped,
            (End::Refused(why), _) => Ended::Refused(why),
            (End::Gone | End::Paused(_), _) => Ended::Gone,
        }
    }

    /// Waits for something to happen; the ends come first.
    fn wait(&self) -> Event {
        let (mut stop, mut hangup, mut news) = (false, false, false);
        while !(stop || hangup || news) {
            let waited = self.poller.wait(None, |token| match token {
                STOP => stop = true,
                SOCKET => hangup = true,
                _ => {
                    news = true;
                    let _ = self.news.read();
                }
            });
            if let Err(error) = waited {
                log::error!("cannot wait for the front-end: {error}");
                stop = true;
            }
        }
        match (stop, hangup) {
            (true, _) => Event::Stop,
            (_, true) => Event::Hangup,
            _ => Event::News,
        }
    }

    fn hang_up(&self) {
        // It may have gone by itself.
        let _ = self.line.shutdown(Shutdown::Both);
    }

    /// Makes a daemon if somebody has asked.
    fn prepare_next(&self) -> Option<Next> {
        let asked = self.server.reattach.asked();
        if asked.is_empty() {
            return None;
        }
        let room = self.memory.lock().check_room();
        match room.and_then(|()| self.prepare()) {
            Ok(daemon) => Some(Next { daemon, asked }),
            Err(error) => {
                log::warn!("the front-end is not reattached: {error}");
                asked.answer(&Err(ReattachError::NotPrepared(error.to_string())));
                None
            }
        }
    }

    /// Replaces a daemon that is over. If that fails, the connection has ended.
    fn replace(&self, before: Daemon, next: Next) -> Result<Daemon, Ended> {
        let Next { daemon, asked } = next;
        let device = &self.server.device;
        let began = Instant::now();
        let stood_still = device.stop_time(began);
        let replaced = self.take_over(before, &daemon);
        // Not if the queues stand: the driver's next start decides.
        if !stood_still {
            device.restart_time(Instant::now());
            self.server.faults.shared().wake();
        }
        match replaced {
            Ok(messages) => {
                let paused = began.elapsed();
                log::debug!("the front-end is reattached: nothing was served for {paused:?}");
                device.counters().reattachments.increment();
                asked.answer(&Ok(Reattached { paused, messages }));
                Ok(daemon)
            }
            Err(ended) => {
                self.hang_up();
                asked.answer(&Err(ReattachError::Gone));
                daemon.discard();
                Err(ended)
            }
        }
    }

    /// Returns how many messages the front-end has sent so far.
    fn take_over(&self, before: Daemon, daemon: &Daemon) -> Result<u64, Ended> {
        let legacy = match before.end(self.server) {
            End::Paused(legacy) => legacy,
            End::Gone => return Err(Ended::Gone),
            End::Refused(why) => return Err(Ended::Refused(why)),
            End::Panicked => return Err(Ended::Panicked),
        };
        let messages = legacy.messages();
        daemon
            .take_over(self.server, *legacy, &self.memory)
            .map_err(|error| Ended::Refused(format!("it cannot be reattached: {error}")))?;
        Ok(messages)
    }
}
