// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The endpoints of this process, and the life of each: added, removed, removed because QEMU has unplugged its device.
//!
//! [`Endpoints`] owns all three steps. Everything that adds or removes an endpoint - the command line, the control
//! socket, the QMP client - calls it.
//!
//! # One lock
//! An endpoint stands in up to four places: the host, the device, the PCI functions, and the names that QEMU has for
//! devices. [`Endpoints`] holds its lock from the first place to the last, so no other thread sees an endpoint that is in
//! some of them. The lock is taken before the device's locks and is held across long host calls. Requests of the guest
//! never take it.
//!
//! # A deletion and the endpoint that it means
//! QEMU says `DEVICE_DELETED` with the device's name. A name can come back: the operator unplugs `dev0`, and plugs in
//! another `dev0`. The event of the first can reach us after the second was added, because the operator hears of it over
//! another connection. The time stamp in the event does not help: it is the time of day, which can be set back. Instead:
//!
//! * [`Endpoints::add`] takes the lock, enters the name, and then makes the endpoint visible. A deletion that arrives in
//!   between waits for the lock, and finds the name.
//! * A name that was entered while QMP is connected is *unsettled*. The QMP client asks QEMU a question about it
//!   ([`Endpoints::question`]). QEMU sends events and answers over one connection in the order in which they happen, so
//!   every deletion of before the question arrives before its answer. Until the answer, a deletion is taken as an
//!   earlier device's. With the answer ([`Endpoints::answered`]) the name is *settled*, and a deletion means this
//!   endpoint.
//! * The question is whether QEMU has the device. A device that QEMU shares with us (`vfio-fd`) is in QEMU before its
//!   endpoint is added. So if such a device was deleted while its name was unsettled, and QEMU does not have it, the
//!   endpoint's own device is gone, and the endpoint with it. Other endpoints may come before their device: a function in
//!   software listens before QEMU can connect to it.
//! * A new connection brings only events of later than itself, so it settles all names ([`Endpoints::qemu_connects`]).
//!
//! Files: `spec` (the description, as options and the control socket give it), `host` (the host, whichever it is),
//! `names` (which endpoint is which device of QEMU).
#![forbid(unsafe_code)]

pub mod host;
mod names;
mod spec;
#[cfg(test)]
mod tests;

use std::os::fd::OwnedFd;
use std::sync::Arc;

use parking_lot::Mutex;
use serde_json::Value;
use vmm_sys_util::eventfd::EventFd;

use crate::device::{self, Device, DeviceConfig};
use crate::endpoints::host::AnyHost;
use crate::endpoints::names::Names;
use crate::host::soft::SoftHost;
use crate::host::{Host, HostError, iommufd};
use crate::soft_endpoint::ServeError;
use crate::spec::EndpointId;

pub use names::{Deleted, Presence, Question};
pub use spec::{Backing, EndpointSpec, EndpointSpecError, VfioDevice};

/// Why an endpoint cannot be added, removed or described.
#[derive(Debug, thiserror::Error)]
pub enum EndpointError {
    /// A device, and the host has none.
    #[error("endpoint {0} is a device, and this process serves software endpoints")]
    NotSoft(EndpointId),
    /// No device, and the host has nothing else.
    #[error("endpoint {0} names no device, and this process serves devices: pass vfio or vfio-fd")]
    NotDevice(EndpointId),
    /// The descriptor of its device is missing.
    #[error("the descriptor of endpoint {0} is missing")]
    NoDescriptor(EndpointId),
    /// The name of a device of QEMU, and no connection to QEMU.
    #[error("'qemu-id' is for a process that was started with --qmp")]
    NoQemu,
    /// It has no PCI function to describe.
    #[error("endpoint {0} has no PCI function in software (soft=)")]
    NoFunction(EndpointId),
    /// Its PCI function cannot be served.
    #[error(transparent)]
    Serve(#[from] ServeError),
    /// The software host refused.
    #[error(transparent)]
    Soft(#[from] HostError),
    /// The iommufd host refused.
    #[error(transparent)]
    Iommufd(#[from] iommufd::SetupError),
    /// The device refused: among others, the endpoint exists already, or does not exist.
    #[error(transparent)]
    Device(#[from] device::SetupError),
}

/// The endpoints of a process, with the device and the host that have them. See the module's page for the lock.
pub struct Endpoints {
    device: Arc<Device>,
    host: AnyHost,
    life: Mutex<Life>,
}

/// What the lock guards, besides the order of steps.
struct Life {
    names: Names,
    /// Written when there is a question for QEMU; `None` while no QMP client wants names.
    qemu: Option<EventFd>,
}

impl Endpoints {
    /// The device over a host, with the endpoints that the command line names. Each comes with its VFIO descriptor if
    /// it is described by one ([`EndpointSpec::fd`]). Their names in QEMU are kept whether or not a QMP client follows.
    ///
    /// # Errors
    /// The first endpoint that the host or the device refuses, or a configuration that does not go with the host.
    pub fn new(
        host: AnyHost,
        config: DeviceConfig,
        endpoints: impl IntoIterator<Item = (EndpointSpec, Option<OwnedFd>)>,
    ) -> Result<Self, EndpointError> {
        let mut names = Names::default();
        let mut ids = Vec::new();
        for (spec, fd) in endpoints {
            host.add_endpoint(&spec, fd)?;
            names.add(&spec);
            ids.push(spec.id);
        }
        let device = Arc::new(Device::new(config, host.host(), &ids)?);
        let life = Mutex::new(Life { names, qemu: None });
        Ok(Self { device, host, life })
    }

    /// The device.
    pub fn device(&self) -> &Arc<Device> {
        &self.device
    }

    /// The host, as the device and the transport know it.
    pub fn host(&self) -> Arc<dyn Host> {
        self.host.host()
    }

    /// The host of software endpoints; `None` where endpoints are devices.
    pub fn soft_host(&self) -> Option<&Arc<SoftHost>> {
        self.host.soft()
    }

    /// Adds an endpoint. `fd` is its VFIO device if the line or option named a descriptor. The guest's driver can attach
    /// the endpoint as soon as this returns.
    ///
    /// # Errors
    /// The endpoint exists, does not go with the host or the device, or has a name while no QMP client follows
    /// ([`EndpointError::NoQemu`]). Then nothing of it stays.
    pub fn add(&self, spec: &EndpointSpec, fd: Option<OwnedFd>) -> Result<(), EndpointError> {
        let mut life = self.life.lock();
        if spec.qemu_id.is_some() && life.qemu.is_none() {
            return Err(EndpointError::NoQemu);
        }
        if self.host.host().has_endpoint(spec.id) {
            return Err(device::SetupError::EndpointExists(spec.id).into());
        }
        life.names.add(spec);
        if let Err(error) = self.make(spec, fd) {
            life.names.remove(spec.id);
            return Err(error);
        }
        life.wake_client();
        log::info!("endpoint {} was added", spec.id);
        Ok(())
    }

    fn make(&self, spec: &EndpointSpec, fd: Option<OwnedFd>) -> Result<(), EndpointError> {
        self.host.add_endpoint(spec, fd)?;
        self.device.add_endpoint(spec.id).map_err(|error| {
            self.host.remove_function(spec.id);
            self.host.host().remove_endpoint(spec.id);
            error.into()
        })
    }

    /// Removes an endpoint: its page requests are answered, its PCI function ends, its device is closed.
    ///
    /// # Errors
    /// There is no such endpoint ([`device::SetupError::NoEndpoint`]).
    pub fn remove(&self, endpoint: EndpointId) -> Result<(), EndpointError> {
        let mut life = self.life.lock();
        self.unmake(endpoint)?;
        life.names.remove(endpoint);
        log::info!("endpoint {endpoint} was removed");
        Ok(())
    }

    /// Called with the lock held.
    fn unmake(&self, endpoint: EndpointId) -> Result<(), EndpointError> {
        self.device.remove_endpoint(endpoint)?;
        self.host.remove_function(endpoint);
        Ok(())
    }

    /// What the PCI function of an endpoint shows: registers, interrupts, counters. Does not take the lock.
    ///
    /// # Errors
    /// There is no such endpoint, or it has no function ([`EndpointError::NoFunction`]).
    pub fn describe_function(&self, endpoint: EndpointId) -> Result<Value, EndpointError> {
        if !self.host.host().has_endpoint(endpoint) {
            return Err(device::SetupError::NoEndpoint(endpoint).into());
        }
        let functions = self.host.functions();
        functions
            .and_then(|functions| functions.describe(endpoint))
            .ok_or(EndpointError::NoFunction(endpoint))
    }

    /// Ends all PCI functions: their DMA, their connections, their sockets. For the end of the process.
    pub fn end_functions(&self) {
        if let Some(functions) = self.host.functions() {
            functions.clear();
        }
    }

    /// A QMP client follows from now on. `event`, which does not block, is written when there may be a
    /// [`Endpoints::question`].
    pub fn follow_qemu(&self, event: EventFd) {
        self.life.lock().qemu = Some(event);
    }

    /// Called before a QMP connection is asked for events: all that arrive over it are younger than the endpoints there
    /// are.
    pub fn qemu_connects(&self) {
        self.life.lock().names.settle_all();
    }

    /// What to ask QEMU next, if anything; the same again until it is answered. Questions are asked one at a time.
    pub fn question(&self) -> Option<Question> {
        self.life.lock().names.question()
    }

    /// QEMU has answered the question of this number. Returns the endpoint that is removed because of it.
    pub fn answered(&self, question: u64, presence: Presence) -> Option<EndpointId> {
        let mut life = self.life.lock();
        let gone = life.names.answered(question, presence)?;
        self.unplugged(gone)
    }

    /// QEMU has let go of a device. Returns the endpoints that are removed because of it.
    pub fn deleted(&self, device: &Deleted) -> Vec<EndpointId> {
        let mut life = self.life.lock();
        let gone = life.names.deleted(device);
        gone.into_iter()
            .filter_map(|endpoint| self.unplugged(endpoint))
            .collect()
    }

    /// Called with the lock held, and the name gone.
    fn unplugged(&self, endpoint: EndpointId) -> Option<EndpointId> {
        match self.unmake(endpoint) {
            Ok(()) => {
                log::info!("QEMU has unplugged the device of endpoint {endpoint}: it is removed");
                Some(endpoint)
            }
            Err(error) => {
                log::warn!("QEMU has unplugged the device of endpoint {endpoint}: {error}");
                None
            }
        }
    }
}

impl Life {
    fn wake_client(&self) {
        if let Some(event) = &self.qemu {
            // Full means that it is readable, as it should be.
            let _ = event.write(1);
        }
    }
}
