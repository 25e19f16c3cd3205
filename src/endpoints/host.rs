// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The host of this process, whichever it is, and how it gets endpoints.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use crate::endpoints::{Backing, EndpointSpec, VfioDevice};
use crate::host::iommufd::{EndpointSource, IommufdHost, SetupError};
use crate::host::soft::{self, SoftHost};
use crate::host::{Host, HostError};
use crate::soft_endpoint::{ServeError, SoftEndpoints};
use crate::spec::EndpointId;

/// The host of this process. One process has endpoints of one kind.
#[derive(Clone)]
pub enum AnyHost {
    /// Software endpoints, and their PCI functions.
    Soft(Arc<SoftHost>, Arc<SoftEndpoints>),
    /// Devices.
    Iommufd(Arc<IommufdHost>),
}

/// Why an endpoint cannot be added.
#[derive(Debug, thiserror::Error)]
pub enum AddEndpointError {
    /// A device, and the host has none.
    #[error("endpoint {0} is a device, and this process serves software endpoints")]
    NotSoft(EndpointId),
    /// No device, and the host has nothing else.
    #[error("endpoint {0} names no device, and this process serves devices: pass vfio or vfio-fd")]
    NotDevice(EndpointId),
    /// The descriptor of its device is missing.
    #[error("the descriptor of endpoint {0} is missing")]
    NoDescriptor(EndpointId),
    /// Its PCI function cannot be served.
    #[error(transparent)]
    Serve(#[from] ServeError),
    /// The software host refused.
    #[error(transparent)]
    Soft(#[from] HostError),
    /// The iommufd host refused.
    #[error(transparent)]
    Iommufd(#[from] SetupError),
}

impl AnyHost {
    /// What the device is given.
    pub fn host(&self) -> Arc<dyn Host> {
        match self {
            Self::Soft(host, _) => Arc::clone(host) as Arc<dyn Host>,
            Self::Iommufd(host) => Arc::clone(host) as Arc<dyn Host>,
        }
    }

    /// The software host, if it is one.
    pub fn soft(&self) -> Option<&Arc<SoftHost>> {
        match self {
            Self::Soft(host, _) => Some(host),
            Self::Iommufd(_) => None,
        }
    }

    /// The PCI functions of software endpoints; `None` where endpoints are devices.
    pub fn functions(&self) -> Option<&SoftEndpoints> {
        match self {
            Self::Soft(_, functions) => Some(functions),
            Self::Iommufd(_) => None,
        }
    }

    /// Ends the PCI function of an endpoint, if it has one.
    pub fn remove_function(&self, endpoint: EndpointId) {
        if let Some(functions) = self.functions() {
            functions.remove(endpoint);
        }
    }

    /// Adds an endpoint. `fd` is its VFIO device where the endpoint names a descriptor.
    pub fn add_endpoint(
        &self,
        endpoint: &EndpointSpec,
        fd: Option<OwnedFd>,
    ) -> Result<(), AddEndpointError> {
        let id = endpoint.id;
        match self {
            Self::Soft(host, functions) if endpoint.is_soft() => {
                host.add_endpoint(id, soft::default_properties())?;
                let Some(path) = endpoint.soft_socket() else {
                    return Ok(());
                };
                functions.add(id, host, path).map_err(|error| {
                    host.remove_endpoint(id);
                    error.into()
                })
            }
            Self::Soft(..) => Err(AddEndpointError::NotSoft(id)),
            Self::Iommufd(host) => {
                let (source, dev_id) = source(endpoint, fd)?;
                Ok(host.add_endpoint(id, source, dev_id)?)
            }
        }
    }
}

fn source(
    endpoint: &EndpointSpec,
    fd: Option<OwnedFd>,
) -> Result<(EndpointSource, Option<u32>), AddEndpointError> {
    match &endpoint.backing {
        Backing::Soft { .. } => Err(AddEndpointError::NotDevice(endpoint.id)),
        Backing::Vfio { device, dev_id } => {
            let source = match device {
                VfioDevice::Path(path) => EndpointSource::VfioPath(path.clone()),
                VfioDevice::Fd(_) => {
                    EndpointSource::VfioFd(fd.ok_or(AddEndpointError::NoDescriptor(endpoint.id))?)
                }
            };
            Ok((source, *dev_id))
        }
        #[cfg(feature = "iommufd-test")]
        Backing::Mock { stdev_id, dev_id } => {
            let stdev_id = *stdev_id;
            Ok((EndpointSource::Mock { stdev_id }, *dev_id))
        }
    }
}
