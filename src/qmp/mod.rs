// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What QEMU says over its machine protocol (QMP), and vhost-user messages cannot say.
//!
//! * `RESET`: the machine was reset. To vhost-user that looks like a pause until the next driver comes; here endpoints
//!   are in bypass at once, or blocked, as at start, so that firmware and boot loaders find what they expect.
//! * `DEVICE_DELETED`: QEMU has let go of a device. Our duplicate of its descriptor would keep it; the endpoint that
//!   names the device (`qemu-id=`) is removed.
//! * `STOP` and `RESUME` say nothing new: QEMU stops and starts the queues with them, and the request queue's base
//!   tells a pause. They are logged.
//!
//! # Order
//! Events and vhost-user messages come over two sockets, so their order here is not QEMU's. QEMU stops the queues,
//! waiting for our answer, before it sends `RESET`; so a `RESET` always finds them stopped, or is late and finds that
//! a driver is on its way again. Such a one changes nothing: the ring's base has told already
//! ([`SystemResets`]). A `DEVICE_DELETED` is older than an endpoint that was added under the same name after it: both
//! carry their time.
//!
//! # Without a connection
//! QEMU has not started yet, or is gone, or has closed the socket: everything is as without `--qmp`, and the connection
//! is tried again for as long as the process lives. Then `query-status` tells whether the machine runs. A reset in
//! between it does not tell, and nothing else does: a machine that runs while the queues are stopped may have been reset,
//! or may be resuming with the messages that start the queues on their way. To take the second for the first would end
//! the attachments of a driver that goes on; to take the first for the second leaves them until the next driver
//! starts, whose ring tells. So nothing is guessed.
//!
//! The crates `qapi` and `qapi-qmp` are made from QEMU's whole schema, of one version. Three events do not pay for
//! that.
//!
//! Files: `client` (the connection), `message` (lines), `names` (which endpoint is which device).
#![forbid(unsafe_code)]

mod client;
mod message;
mod names;

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use vmm_sys_util::eventfd::EventFd;

use crate::device::Device;
use crate::host::any::AnyHost;
use crate::transport::SystemResets;
use client::{Client, ClientError, Waiter};
use message::Event;

pub use names::Names;

/// How long to wait before the socket is tried again.
const RETRY: Duration = Duration::from_secs(1);

/// What events act on.
#[derive(Clone)]
pub struct Context {
    /// The device.
    pub device: Arc<Device>,
    /// Its host.
    pub host: AnyHost,
    /// Whether a driver is on its way.
    pub resets: Arc<SystemResets>,
    /// Which endpoint is which device of QEMU.
    pub names: Arc<Names>,
}

/// The thread that listens to QEMU. It ends when `stop` is readable.
pub struct Qmp(JoinHandle<()>);

impl Qmp {
    /// Starts the thread. `stop` is never read, so that others can wait for it too.
    ///
    /// # Errors
    /// A descriptor or the thread cannot be made.
    pub fn start(path: PathBuf, context: Context, stop: &EventFd) -> io::Result<Self> {
        let waiter = Waiter::new(stop)?;
        let listener = Listener {
            path,
            context,
            waiter,
            reported: None,
            lost: None,
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
        let mut client = Client::connect(&self.path, &self.waiter)?;
        log::info!("QMP: connected to QEMU {}", client.version());
        self.reported = None;
        if self.lost.take() == Some(self.front_ends()) && self.context.device.status().connected {
            log::warn!(
                "QMP: what QEMU said while there was no connection is lost: if the machine was reset, endpoints are as at \
                 start only when the next driver starts; those of devices that were unplugged want endpoint-remove"
            );
        }
        loop {
            match client.event(&self.waiter) {
                Ok(Some(event)) => self.carry_out(&event),
                Ok(None) => {}
                Err(error) => {
                    self.lost = Some(self.front_ends());
                    return Err(error);
                }
            }
        }
    }

    /// How many front-ends there have been: another one has found everything as at start.
    fn front_ends(&self) -> u64 {
        self.context.device.counters().connections.get()
    }

    fn report(&mut self, error: &ClientError) {
        let text = error.to_string();
        if self.reported.as_ref() != Some(&text) {
            log::warn!(
                "QMP: {}: {text}; trying again, and until then resets are told from pauses by the request queue",
                self.path.display()
            );
            self.reported = Some(text);
        }
    }

    fn carry_out(&self, event: &Event) {
        let context = &self.context;
        match event {
            Event::Status(status) => log::info!("QMP: the machine's state is {status}"),
            Event::Reset if context.resets.machine_was_reset(&context.device) => {
                log::info!("QMP: the machine was reset, and so is the device");
            }
            Event::Reset => {
                log::info!("QMP: the machine was reset, and the driver is back already");
            }
            Event::Stop => log::info!("QMP: the machine is paused"),
            Event::Resume => log::info!("QMP: the machine goes on"),
            Event::DeviceDeleted(deleted) => {
                let Some(endpoint) = context.names.take(deleted) else {
                    return;
                };
                match context.device.remove_endpoint(endpoint) {
                    Ok(()) => {
                        context.host.remove_function(endpoint);
                        log::info!("QMP: endpoint {endpoint} was unplugged and is removed");
                    }
                    Err(error) => log::warn!("QMP: a device was unplugged: {error}"),
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
