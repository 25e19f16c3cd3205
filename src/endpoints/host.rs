// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The host of this process, whichever it is, and how it gets endpoints.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use crate::endpoints::{Backing, EndpointError, EndpointSpec, VfioDevice};
use crate::host::Host;
use crate::host::iommufd::{EndpointSource, IommufdHost};
use crate::host::soft::{self, SoftHost};
use crate::soft_endpoint::SoftEndpoints;
use crate::spec::EndpointId;

/// The host of this process. One process has endpoints of one kind.
#[derive(Clone)]
pub enum AnyHost {
    /// Software endpoints, and their PCI functions.
    Soft(Arc<SoftHost>, Arc<SoftEndpoints>),
    /// Devices.
    Iommufd(Arc<IommufdHost>),
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
    pub(super) fn functions(&self) -> Option<&SoftEndpoints> {
        match self {
            Self::Soft(_, functions) => Some(functions),
            Self::Iommufd(_) => None,
        }
    }

    /// Ends the PCI function of an endpoint, if it has one.
    pub(super) fn remove_function(&self, endpoint: EndpointId) {
        if let Some(functions) = self.functions() {
            functions.remove(endpoint);
        }
    }

    /// Adds an endpoint to the host, with its PCI function. `fd` is its VFIO device if the endpoint names a descriptor.
    pub(super) fn add_endpoint(
        &self,
        endpoint: &EndpointSpec,
        fd: Option<OwnedFd>,
    ) -> Result<(), EndpointError> {
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
            Self::Soft(..) => Err(EndpointError::NotSoft(id)),
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
) -> Result<(EndpointSource, Option<u32>), EndpointError> {
    match &endpoint.backing {
        Backing::Soft { .. } => Err(EndpointError::NotDevice(endpoint.id)),
        Backing::Vfio { device, dev_id } => {
            let source = match device {
                VfioDevice::Path(path) => EndpointSource::VfioPath(path.clone()),
                VfioDevice::Fd(_) => {
                    EndpointSource::VfioFd(fd.ok_or(EndpointError::NoDescriptor(endpoint.id))?)
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
