// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Options that do not go together, as far as clap does not find them.

use std::collections::BTreeSet;
use std::path::PathBuf;

use crate::cli::args::{CheckArgs, InheritedFd, LogSource, ServeArgs};
use crate::endpoints::{Backing, EndpointSpec, VfioDevice};
use crate::spec::EndpointId;

/// Options that do not go together.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum ArgsError {
    /// An endpoint came twice.
    #[error("endpoint {0} is given twice: each --endpoint needs an ID of its own")]
    DuplicateEndpoint(EndpointId),
    /// One VFIO device for two endpoints.
    #[error("{0} is given to two endpoints: a device is one endpoint")]
    DuplicateDevice(String),
    /// Both kinds of endpoint.
    #[error(
        "endpoint {soft} is a software endpoint and endpoint {device} a device: one process serves one kind; start a second process, or give endpoint {soft} a device with vfio="
    )]
    Mixed {
        /// A software endpoint.
        soft: EndpointId,
        /// One with a device.
        device: EndpointId,
    },
    /// An iommufd without a device to use it.
    #[error("{0} is for endpoints with vfio= or vfio-fd=, and there is none")]
    UnusedIommufd(&'static str),
    /// The kernel's log without a device that could be in it.
    #[error("--kernel-log is for endpoints with vfio= or vfio-fd=, and there is none")]
    UnusedKernelLog,
    /// No endpoint, and no way for one to come.
    #[error("there is no endpoint: name one with --endpoint, or add them over --control")]
    NoWayIn,
    /// A descriptor twice.
    #[error("file descriptor {0} is given for two purposes")]
    DuplicateFd(InheritedFd),
    /// A mock device needs the iommufd it was made in.
    #[error(
        "endpoint {0} is a mock device: pass the iommufd that it was made in with --iommufd-fd"
    )]
    MockWithoutIommufd(EndpointId),
    /// The name of a device of QEMU, and no connection to QEMU.
    #[error(
        "endpoint {0} has qemu-id=, which is for --qmp: pass the path of QEMU's QMP socket with it"
    )]
    QemuIdWithoutQmp(EndpointId),
    /// A check of what cannot be looked at.
    #[error(
        "endpoint {0}: check looks at devices that no process uses, by path: give it vfio=/dev/vfio/devices/vfioN and no dev-id"
    )]
    NotCheckable(EndpointId),
    /// One path for two sockets.
    #[error("{0}: two sockets need two paths; --socket-path, --control and each soft= are one")]
    SamePath(String),
}

/// Finds endpoints and devices that are named twice.
fn check_endpoints(endpoints: &[EndpointSpec]) -> Result<(), ArgsError> {
    let mut ids = BTreeSet::new();
    let mut paths = BTreeSet::new();
    for endpoint in endpoints {
        if !ids.insert(endpoint.id) {
            return Err(ArgsError::DuplicateEndpoint(endpoint.id));
        }
        if let Backing::Vfio {
            device: VfioDevice::Path(path),
            ..
        } = &endpoint.backing
            && !paths.insert(path)
        {
            return Err(ArgsError::DuplicateDevice(path.display().to_string()));
        }
    }
    Ok(())
}

impl CheckArgs {
    /// Finds what cannot be looked at.
    ///
    /// # Errors
    /// An endpoint is no device by path, or is given twice.
    pub fn check(&self) -> Result<(), ArgsError> {
        let by_path = |endpoint: &&EndpointSpec| {
            matches!(
                endpoint.backing,
                Backing::Vfio {
                    device: VfioDevice::Path(_),
                    dev_id: None
                }
            )
        };
        if let Some(other) = self.endpoints.iter().find(|endpoint| !by_path(endpoint)) {
            return Err(ArgsError::NotCheckable(other.id));
        }
        check_endpoints(&self.endpoints)
    }
}

impl ServeArgs {
    /// Finds options that contradict each other.
    ///
    /// # Errors
    /// The first contradiction.
    pub fn check(&self) -> Result<(), ArgsError> {
        check_endpoints(&self.endpoints)?;
        #[cfg(feature = "iommufd-test")]
        for endpoint in &self.endpoints {
            if matches!(endpoint.backing, Backing::Mock { .. }) && self.iommufd_fd.is_none() {
                return Err(ArgsError::MockWithoutIommufd(endpoint.id));
            }
        }
        let soft = self.endpoints.iter().find(|e| e.is_soft());
        let device = self.endpoints.iter().find(|e| !e.is_soft());
        match (soft, device) {
            (Some(soft), Some(device)) => {
                return Err(ArgsError::Mixed {
                    soft: soft.id,
                    device: device.id,
                });
            }
            (_, None) if self.iommufd.is_some() => {
                return Err(ArgsError::UnusedIommufd("--iommufd"));
            }
            (None, None) if self.iommufd_fd.is_some() && self.control.is_none() => {
                return Err(ArgsError::NoWayIn);
            }
            (Some(_), None) if self.iommufd_fd.is_some() => {
                return Err(ArgsError::UnusedIommufd("--iommufd-fd"));
            }
            (Some(_), None) if self.kernel_log.is_some() => {
                return Err(ArgsError::UnusedKernelLog);
            }
            _ => {}
        }
        let mut fds = BTreeSet::new();
        let device_fds = self.endpoints.iter().filter_map(EndpointSpec::fd);
        let kernel_log = match &self.kernel_log {
            Some(LogSource::Fd(fd)) => Some(fd),
            _ => None,
        };
        let own = self.fd.iter().chain(&self.iommufd_fd);
        let own = own.chain(kernel_log).cloned();
        for fd in own.chain(device_fds.map(InheritedFd::Number)) {
            if fds.contains(&fd) {
                return Err(ArgsError::DuplicateFd(fd));
            }
            fds.insert(fd);
        }
        let mut sockets = BTreeSet::new();
        let soft_sockets = self.endpoints.iter().filter_map(EndpointSpec::soft_socket);
        let own_sockets = self.socket_path.iter().chain(&self.control);
        for path in own_sockets.map(PathBuf::as_path).chain(soft_sockets) {
            if !sockets.insert(path) {
                return Err(ArgsError::SamePath(path.display().to_string()));
            }
        }
        let named = self
            .endpoints
            .iter()
            .find(|endpoint| endpoint.qemu_id.is_some());
        if let (Some(named), None) = (named, &self.qmp) {
            return Err(ArgsError::QemuIdWithoutQmp(named.id));
        }
        Ok(())
    }
}
