// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What QEMU says over its machine protocol (QMP), and vhost-user messages cannot say.
//!
//! * `RESET`: the machine was reset. To vhost-user that looks like a pause until the next driver comes; here endpoints
//!   are in bypass at once, or blocked, as `--boot-bypass` says: that is what firmware and boot loaders expect.
//! * `DEVICE_DELETED`: QEMU has let go of a device. Our duplicate of its descriptor would keep it; the endpoint that
//!   names the device (`qemu-id=`) is removed.
//! * whether the machine runs (`query-status`), asked when the queues have stopped. Stopped queues of a machine that runs
//!   are a driver's end: the next driver finds the device reset, and until then there are no page requests. Of one that is
//!   paused they are its pause, until `RESUME`; then the question is asked again.
//!
//! # Order
//! Events and vhost-user messages come over two sockets, so their order here is not QEMU's. QEMU stops the queues,
//! waiting for our answer, before it sends `RESET`; so a `RESET` always finds them stopped, or is late and finds that
//! a driver is on its way again. Such a one changes nothing: the ring's base has told already
//! ([`DriverLife`]).
//!
//! QEMU (from 8.2 on) stops the queues for a pause when it calls the machine paused already, and calls it running
//! before it starts them. It carries out commands only after either, and starting them includes messages that it waits
//! for (`SET_VRING_ENABLE`, by `REPLY_ACK`), behind the driver's features. So of a question that was asked after the
//! stop, the answer `running` finds the driver on its way again, or there was no pause.
//!
//! A `DEVICE_DELETED` can be late too, and find another endpoint under the name of its device. [`crate::endpoints`] has
//! the rule, for which it asks QEMU whether a device is there.
//!
//! # The end of a driver
//! Translations outlive it. Linux 7.2 resets virtio devices as it shuts down, the IOMMU before the devices
//! behind it: a disk that is still to be told to shut down would find its queues unmapped, and so would its driver after
//! a minute of waiting; or, in bypass, it would use its I/O virtual addresses as physical ones. QEMU's own virtio-iommu
//! keeps translations too. To drivers that is as if the reset came late: the next one finds no attachment (I12).
//!
//! # Without a connection
//! QEMU has not started yet, or is gone, or has closed the socket: everything is as without `--qmp`, and the connection
//! is tried again for as long as the process lives. Then the same question is asked. A reset of the machine in between
//! is found as the end of its driver: endpoints stay as they are until the next, and `bypass` for good.
//!
//! The crates `qapi` and `qapi-qmp` are made from QEMU's whole schema, of one version. Three events do not pay for
//! that.
//!
//! Files: `client` (the connection), `message` (lines).
#![forbid(unsafe_code)]

mod client;
mod message;

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use vmm_sys_util::eventfd::EventFd;

use crate::device::Device;
use crate::endpoints::{Endpoints, Question};
use crate::transport::{DriverLife, Stop};
use client::{Client, ClientError, Waiter};
use message::Event;

/// How long to wait before the socket is tried again.
const RETRY: Duration = Duration::from_secs(1);
/// What QEMU calls a machine that runs (`RunState`).
const RUNNING: &str = "running";

/// What events act on.
#[derive(Clone)]
pub struct Context {
    /// The endpoints, and the device that has them.
    pub endpoints: Arc<Endpoints>,
    /// Whether a driver is on its way.
    pub driver_life: Arc<DriverLife>,
}

/// The thread that listens to QEMU. It ends when `stop` is readable.
pub struct Qmp(JoinHandle<()>);

impl Qmp {
    /// Starts the thread. `stop` is never read: other threads wait for it too.
    ///
    /// # Errors
    /// A descriptor or the thread cannot be made.
    pub fn start(path: PathBuf, context: Context, stop: &EventFd) -> io::Result<Self> {
        let changes = EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)?;
        context.driver_life.set_stop_event(changes.try_clone()?);
        context.endpoints.follow_qemu(changes.try_clone()?);
        let waiter = Waiter::new(stop, changes)?;
        let listener = Listener {
            path,
            context,
            waiter,
            reported: None,
            lost: None,
            asked: None,
            question: None,
            paused: None,
        };
        let thread = thread::Builder::new()
            .name("qmp".to_owned())
            .spawn(move || listener.run())?;
        Ok(Self(thread))
    }

    /// Waits for its end.
    pub fn join(self) {
        if self.0.join().is_err() {
            log::error!("the QMP thread panicked");
        }
    }
}

struct Listener {
    path: PathBuf,
    context: Context,
    waiter: Waiter,
    /// What was last logged: the same again is not.
    reported: Option<String>,
    /// How many front-ends there had been when a connection was lost.
    lost: Option<u64>,
    /// A question is on its way: the stop that it was asked for, or none.
    asked: Option<Option<Stop>>,
    /// A question about a device is on its way.
    question: Option<Question>,
    /// A stop that was a pause, as far as QEMU has told.
    paused: Option<Stop>,
}

impl Listener {
    fn run(mut self) {
        loop {
            match self.listen() {
                Err(ClientError::Stopped) => return,
                Err(error) => self.report(&error),
                Ok(never) => match never {},
            }
            if self.waiter.pause(RETRY).is_err() {
                return;
            }
        }
    }

    /// Connects, and carries out events until that ends.
    fn listen(&mut self) -> Result<std::convert::Infallible, ClientError> {
        let endpoints = Arc::clone(&self.context.endpoints);
        let mut client = Client::connect(&self.path, &self.waiter, || endpoints.qemu_connects())?;
        log::info!("QMP: connected to QEMU {}", client.version());
        self.reported = None;
        if self.lost.take() == Some(self.front_ends()) && self.device().outline().connected {
            log::warn!(
                "QMP: what QEMU said while there was no connection is lost: if the machine was reset, `bypass` is not as \
                 at start; endpoints of devices that were unplugged want endpoint-remove"
            );
        }
        let never = self.follow(&mut client);
        self.lost = Some(self.front_ends());
        never
    }

    fn follow(&mut self, client: &mut Client) -> Result<std::convert::Infallible, ClientError> {
        self.paused = None;
        self.question = None;
        self.asked = Some(self.context.driver_life.undecided_stop());
        client.ask_status()?;
        loop {
            if let Some(event) = client.event(&self.waiter)? {
                self.carry_out(&event);
            }
            // One at a time, so that an answer belongs to what was known when it was asked for.
            let stop = self.context.driver_life.undecided_stop();
            if stop.is_some() && stop != self.paused && self.asked.is_none() {
                self.asked = Some(stop);
                client.ask_status()?;
            }
            if self.question.is_none()
                && let Some(question) = self.context.endpoints.question()
            {
                client.ask_presence(&question)?;
                self.question = Some(question);
            }
        }
    }

    fn device(&self) -> &Device {
        self.context.endpoints.device()
    }

    /// How many front-ends there have been: a new one finds a device that was reset.
    fn front_ends(&self) -> u64 {
        self.device().counters().connections.get()
    }

    fn report(&mut self, error: &ClientError) {
        let text = error.to_string();
        if self.reported.as_ref() != Some(&text) {
            log::warn!(
                "QMP: {}: {text}; trying again; until then the request queue alone distinguishes a reset from a pause",
                self.path.display()
            );
            self.reported = Some(text);
        }
    }

    fn carry_out(&mut self, event: &Event) {
        let context = &self.context;
        match event {
            Event::Status(status) => {
                log::info!("QMP: the machine's state is {status}");
                match self.asked.take().flatten() {
                    Some(stop) if status == RUNNING => {
                        if context
                            .driver_life
                            .machine_runs(stop, context.endpoints.device())
                        {
                            log::info!(
                                "QMP: the driver has ended; what it has mapped stays for devices that have not"
                            );
                        }
                    }
                    stop => self.paused = stop,
                }
            }
            Event::Reset
                if context
                    .driver_life
                    .machine_was_reset(context.endpoints.device()) =>
            {
                log::info!("QMP: the machine was reset, and so is the device");
            }
            Event::Reset => {
                log::info!("QMP: the machine was reset, and the driver is back already");
            }
            Event::Stop => log::info!("QMP: the machine is paused"),
            Event::Resume => {
                log::info!("QMP: the machine goes on");
                self.paused = None;
            }
            Event::DeviceDeleted(deleted) => {
                context.endpoints.deleted(deleted);
            }
            Event::Presence(number, presence) => {
                self.question = None;
                context.endpoints.answered(*number, *presence);
            }
        }
    }
}

#[cfg(test)]
mod tests;
