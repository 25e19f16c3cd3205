// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Front-ends, one after another. What one connection is, `connection` says.
//!
//! The thread here never waits for anything that a front-end can hold up. Threads that do are interrupted at the end.

use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use vmm_sys_util::eventfd::EventFd;

use crate::device::Device;
use crate::os::poller::Poller;
use crate::transport::connection::{Connection, Ended};
use crate::transport::driver_life::DriverLife;
use crate::transport::fault_worker::FaultWorker;
use crate::transport::reattach::Reattach;
use crate::transport::{Memory, TransportError};

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
    pub reattach: Arc<Reattach>,
}

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
        match Connection::new(self, stream, stop)?.serve()? {
            Ended::Gone => log::info!("the front-end is gone"),
            Ended::Stopped => log::info!("the front-end is disconnected"),
            Ended::Refused(why) => log::warn!("the front-end is disconnected: {why}"),
            Ended::Panicked => {
                log::error!("the front-end is disconnected: its thread has panicked");
            }
        }
        Ok(())
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
