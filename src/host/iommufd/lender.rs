// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The virtual machine monitor that has bound a device and shares it with us.
//!
//! Before we come, the device is in an address space of the monitor, which has all of guest memory in it and follows
//! what comes and goes. We know guest memory only from the start of the guest's driver on, and a boot loader uses
//! the device before: so the monitor's address space is the bypass of such a device, for as long as the monitor is
//! there.

use std::collections::BTreeSet;

use super::context::{Context, objects};
use super::kernel;
use super::startup::SetupError;
use crate::spec::EndpointId;

/// The monitor that has lent a device.
#[derive(Clone, Copy, Debug)]
pub(super) struct Lender {
    identity: Option<u32>,
}

impl Lender {
    /// Finds the address space of the context that is none of `ours`. The kernel does not tell which one a device is
    /// attached to, so where there are several, none is taken.
    ///
    /// # Errors
    /// [`SetupError::NoMemory`].
    pub fn find(
        context: &Context,
        endpoint: EndpointId,
        ours: &BTreeSet<u32>,
    ) -> Result<Self, SetupError> {
        let others = objects(|id| {
            (!ours.contains(&id)).then(|| kernel::iova_ranges(context.fd(), id).map(drop))
        })?;
        let identity = match others {
            (Some(only), None) => Some(only),
            (first, _) => {
                let found = if first.is_some() { "several" } else { "none" };
                log::warn!(
                    "endpoint {endpoint}: it reaches memory only when the guest's driver has started: of the address \
                     spaces in the iommufd one should be that of the front-end, there are {found}"
                );
                None
            }
        };
        Ok(Self { identity })
    }

    /// The address space with all of guest memory at its own addresses.
    pub fn identity(&self) -> Option<u32> {
        self.identity
    }
}
