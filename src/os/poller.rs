// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! An epoll set that closes itself.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::time::{Duration, Instant};

use epoll::{ControlOptions, Event, Events};

/// The most descriptors that one call reports.
const BATCH: usize = 8;

/// Waits for descriptors to become readable.
pub(crate) struct Poller(RawFd);

impl Poller {
    pub fn new() -> io::Result<Self> {
        epoll::create(true).map(Self)
    }

    /// Reports `fd` as `token` for as long as it is readable.
    pub fn add(&self, fd: RawFd, token: u64) -> io::Result<()> {
        let event = Event::new(Events::EPOLLIN, token);
        epoll::ctl(self.0, ControlOptions::EPOLL_CTL_ADD, fd, event)
    }

    /// Reports it no more.
    pub fn remove(&self, fd: &impl AsRawFd) {
        let event = Event::new(Events::empty(), 0);
        // It was added, or there is nothing to remove.
        let _ = epoll::ctl(self.0, ControlOptions::EPOLL_CTL_DEL, fd.as_raw_fd(), event);
    }

    /// Waits until a descriptor is readable or the deadline has passed, and calls `ready` with the token of each.
    pub fn wait(&self, deadline: Option<Instant>, mut ready: impl FnMut(u64)) -> io::Result<()> {
        let mut events = [Event::new(Events::empty(), 0); BATCH];
        let timeout = deadline.map_or(-1, |deadline| {
            milliseconds(deadline.saturating_duration_since(Instant::now()))
        });
        let count = match epoll::wait(self.0, timeout, &mut events) {
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => 0,
            Err(error) => return Err(error),
        };
        for event in events.iter().take(count) {
            ready(event.data);
        }
        Ok(())
    }
}

/// Rounded up: a deadline has passed when the call returns.
fn milliseconds(left: Duration) -> i32 {
    i32::try_from(left.as_micros().div_ceil(1000)).unwrap_or(i32::MAX)
}

impl Drop for Poller {
    fn drop(&mut self) {
        // Nobody else has it, and there is nobody to tell.
        let _ = epoll::close(self.0);
    }
}
