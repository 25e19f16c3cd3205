// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! An epoll set with deadlines.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::time::{Duration, Instant};

use epoll::{ControlOptions, Event, Events};

/// The most descriptors that one call reports.
const BATCH: usize = 8;

/// Waits for events of descriptors. Any thread can add and remove descriptors while another waits.
pub(crate) struct Poller(RawFd);

impl Poller {
    /// # Errors
    /// The process or the system has no descriptor left.
    pub fn new() -> io::Result<Self> {
        epoll::create(true).map(Self)
    }

    /// Reports `fd` as `token` for as long as it is readable.
    ///
    /// # Errors
    /// The kernel has no memory, or the descriptor cannot be waited for.
    pub fn add(&self, fd: RawFd, token: u64) -> io::Result<()> {
        self.register(fd, Events::EPOLLIN, token)
    }

    /// Reports `fd` as `token` each time that it becomes readable or more is written to it. It need not be read.
    ///
    /// # Errors
    /// As for [`Poller::add`].
    pub fn add_edge(&self, fd: RawFd, token: u64) -> io::Result<()> {
        self.register(fd, Events::EPOLLIN | Events::EPOLLET, token)
    }

    /// Reports the socket `fd` as `token` once its other end, or its own, is shut down.
    ///
    /// # Errors
    /// As for [`Poller::add`].
    pub fn add_hangup(&self, fd: RawFd, token: u64) -> io::Result<()> {
        self.register(fd, Events::EPOLLRDHUP, token)
    }

    fn register(&self, fd: RawFd, events: Events, token: u64) -> io::Result<()> {
        let event = Event::new(events, token);
        epoll::ctl(self.0, ControlOptions::EPOLL_CTL_ADD, fd, event)
    }

    /// Reports it no more. Closing a descriptor is not enough if another process has a duplicate.
    pub fn remove(&self, fd: &impl AsRawFd) {
        // It was added, or there is nothing to remove.
        let none = Event::new(Events::empty(), 0);
        let _ = epoll::ctl(self.0, ControlOptions::EPOLL_CTL_DEL, fd.as_raw_fd(), none);
    }

    /// Waits until there is an event or the deadline has passed, and calls `ready` with the token of each event. Also
    /// returns when a signal interrupts it.
    ///
    /// # Errors
    /// None is known to happen.
    pub fn wait(&self, deadline: Option<Instant>, mut ready: impl FnMut(u64)) -> io::Result<()> {
        let mut events = [Event::new(Events::empty(), 0); BATCH];
        let timeout = deadline.map_or(-1, |deadline| {
            milliseconds(deadline.saturating_duration_since(Instant::now()))
        });
        let count = match epoll::wait(self.0, timeout, &mut events) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => 0,
            other => other?,
        };
        for event in events.iter().take(count) {
            ready(event.data);
        }
        Ok(())
    }
}

impl Drop for Poller {
    fn drop(&mut self) {
        // No other owner has it, and nothing can be done about an error.
        let _ = epoll::close(self.0);
    }
}

/// Rounded up: a deadline has passed when the call returns.
fn milliseconds(left: Duration) -> i32 {
    i32::try_from(left.as_micros().div_ceil(1000)).unwrap_or(i32::MAX)
}
