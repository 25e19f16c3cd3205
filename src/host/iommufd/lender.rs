// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The virtual machine monitor that has bound a device and shares it with us.
//!
//! Before we come, the device is in an address space of the monitor, which has all of guest memory in it and follows
//! what comes and goes. We know guest memory only from the start of the guest's driver on, and a boot loader uses
//! the device before: so the monitor's address space is the bypass of such a device, for as long as the monitor is
//! there.
//!
//! A monitor such as QEMU makes the page table of its address space itself, and keeps it while it has the device. The
//! device goes back to that table: the kernel never picks it for a device that is attached to the address space, but fills
//! another one.

use std::ops::RangeInclusive;

use super::State;
use super::context::{Context, objects};
use super::endpoint::LENT;
use super::error::is_exhausted;
use super::fault::FaultQueue;
use super::kernel::{self, CallError};
use super::startup::SetupError;
use super::state::find_bypass;
use crate::spec::EndpointId;

/// Where to look for page tables of the monitor. It makes them with its first devices, when the lowest ids are free; and
/// without one nothing but time is lost.
const TABLE_IDS: RangeInclusive<u32> = 1..=512;

/// The monitor that has lent a device.
#[derive(Clone, Debug)]
pub(super) struct Lender {
    mapping: Option<Mapping>,
}

/// All of guest memory at its own addresses, as the monitor has mapped it.
#[derive(Clone, Debug)]
pub(super) struct Mapping {
    ioas: u32,
    /// Page tables of it that were there when the device came. One that has gone can be another object by now.
    tables: Vec<u32>,
}

impl Lender {
    /// Finds the address space of the context that is none of ours, and its page tables. The kernel does not tell which
    /// address space a device is attached to, or a page table is of: so where there are several, none is taken.
    ///
    /// # Errors
    /// [`SetupError::NoMemory`].
    pub fn find(context: &Context, endpoint: EndpointId) -> Result<Self, SetupError> {
        let others = objects(|id| {
            (!context.has_made(id)).then(|| kernel::iova_ranges(context.fd(), id).map(drop))
        })?;
        let mapping = match others {
            (Some(ioas), None) => {
                let tables = TABLE_IDS.filter(|&id| is_of_another(context, id));
                let tables = tables.collect();
                Some(Mapping { ioas, tables })
            }
            (first, _) => {
                let found = if first.is_some() { "several" } else { "none" };
                log::warn!(
                    "endpoint {endpoint}: it reaches memory only when the guest's driver has started: of the address \
                     spaces in the iommufd one should be that of the front-end, there are {found}"
                );
                None
            }
        };
        Ok(Self { mapping })
    }

    /// All of guest memory.
    pub fn mapping(&self) -> Option<&Mapping> {
        self.mapping.as_ref()
    }
}

impl Mapping {
    /// Attaches a device with `attach`: to a page table that there is, or to a new one of the kernel's where none of these
    /// fits. That one goes when the last device leaves it.
    pub fn enter(
        &self,
        context: &Context,
        attach: impl Fn(u32) -> Result<(), CallError>,
    ) -> Result<(), CallError> {
        let tables = self.tables.iter().copied();
        for table in tables.filter(|&table| is_of_another(context, table)) {
            match attach(table) {
                Err(error) if is_exhausted(error.errno) => return Err(error),
                // It is for another kind of IOMMU, or without PASIDs, or has just gone.
                Err(error) => log::debug!("page table {table} of the front-end: {error}"),
                Ok(()) => return Ok(()),
            }
        }
        attach(self.ioas)
    }
}

impl State {
    /// Moves a device that is in its lender's mapping of guest memory to ours, which is fit for PASIDs.
    pub(super) fn leave_lender(
        &mut self,
        context: &Context,
        faults: Option<&FaultQueue>,
        id: EndpointId,
    ) -> Result<(), CallError> {
        let Some(endpoint) = self.endpoints.get_mut(&id) else {
            return Ok(());
        };
        if endpoint.attached.hwpt != LENT {
            return Ok(());
        }
        let needs = endpoint.needs(endpoint.attached.to, faults);
        let allowed = &endpoint.allowed;
        let bypass = find_bypass(&mut self.bypass, context, allowed, &self.memory)?;
        let attach = |hwpt| endpoint.device.attach(hwpt);
        endpoint.attached.hwpt = bypass.space.enter(context, needs, attach)?;
        Ok(())
    }
}

/// Whether it is a page table that we have not made.
fn is_of_another(context: &Context, id: u32) -> bool {
    !context.has_made(id) && kernel::is_page_table(context.fd(), id)
}
