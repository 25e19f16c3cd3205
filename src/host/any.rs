// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The host of this process, whichever it is, and how it gets endpoints.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use crate::args::{Backing, EndpointSpec};
use crate::host::soft::{self, SoftHost};
use crate::host::{Host, HostError};

/// The host of this process. One process has endpoints of one kind.
#[derive(Clone)]
pub enum AnyHost {
    /// Software endpoints.
    Soft(Arc<SoftHost>),
}

impl AnyHost {
    /// What the device is given.
    pub fn host(&self) -> Arc<dyn Host> {
        match self {
            Self::Soft(host) => Arc::clone(host) as Arc<dyn Host>,
        }
    }

    /// The software host, if it is one.
    pub fn soft(&self) -> Option<&Arc<SoftHost>> {
        match self {
            Self::Soft(host) => Some(host),
        }
    }

    /// Adds an endpoint. `fd` is its VFIO device where the endpoint names a descriptor.
    pub fn add_endpoint(
        &self,
        endpoint: &EndpointSpec,
        _fd: Option<OwnedFd>,
    ) -> Result<(), HostError> {
        match (self, &endpoint.backing) {
            (Self::Soft(host), Backing::Soft) => {
                host.add_endpoint(endpoint.id, soft::default_properties())
            }
            (Self::Soft(_), _) => Err(HostError::Unsupported(format!(
                "endpoint {} is a device, and this process serves software endpoints",
                endpoint.id
            ))),
        }
    }
}
