// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! An endpoint: a device, what it can do, and where it and its PASIDs are.

use std::collections::BTreeMap;

use iommufd_bindings as uapi;

use super::context::Context;
use super::device::Attach;
use super::fault::FaultQueue;
use super::kernel::{self, CallError};
use super::lender::{self, Lender};
use super::nested::Nesting;
use super::space::{AddressSpace, Needs};
use crate::host::mapping::IovaRange;
use crate::host::{Attachment, Owner, PageRequests, ReservedRegion};
use crate::spec::{Iova, Pasid, PasidFlags, ResvMemSubtype};

/// No object of an iommufd has this id.
pub(super) const LENT: u32 = 0;

/// Where a requester is.
#[derive(Clone, Copy, Debug)]
pub(super) struct Attached {
    pub to: Attachment,
    /// The page table that it is attached to; [`LENT`] when that is not ours.
    pub hwpt: u32,
}

/// An endpoint.
pub(super) struct Endpoint {
    pub device: Box<dyn Attach>,
    pub dev_id: u32,
    /// It can raise page requests.
    pub page_requests: bool,
    /// Width in bits of its PASIDs; 0 when it has none.
    pub pasid_width: u8,
    pub pasid_flags: PasidFlags,
    /// The tables of the driver that it can be attached to.
    pub nesting: Option<Nesting>,
    /// What it can put on the bus for memory, ascending.
    pub allowed: Vec<IovaRange>,
    /// What its mappings are aligned to.
    pub alignment: u64,
    /// Nothing is mapped there.
    pub blocked: AddressSpace,
    /// The process that shares the device, if one does.
    pub lender: Option<Lender>,
    pub attached: Attached,
    pub pasids: BTreeMap<Pasid, Attached>,
}

impl Endpoint {
    /// Blocks a device and finds out what it can do. On error it is where it was, or detached.
    pub fn new(
        context: &Context,
        faults: Option<&FaultQueue>,
        device: Box<dyn Attach>,
        dev_id: u32,
    ) -> Result<Self, CallError> {
        let info = kernel::hw_info(context.fd(), dev_id)?;
        let mut blocked = AddressSpace::permanent(context)?;
        let mut trial = AddressSpace::new(context)?;
        let needs = Needs {
            dev_id,
            pasid: info.pasid_width > 0,
            fault_queue: None,
        };
        let (hwpt, needs) = block(context, &mut blocked, needs, &*device)?;
        let attached = Attached {
            to: Attachment::Blocked,
            hwpt,
        };
        let found = blocked.ioas().allowed().and_then(|(allowed, alignment)| {
            let page_requests = match faults {
                Some(queue) => {
                    let with_faults = Needs {
                        fault_queue: Some(queue.id()),
                        ..needs
                    };
                    try_page_requests(context, &mut trial, with_faults, &*device, hwpt)?
                }
                None => false,
            };
            let nesting = Nesting::find(context, dev_id, needs.pasid, &info)?;
            Ok((allowed, alignment, page_requests, nesting))
        });
        let (allowed, alignment, page_requests, nesting) = found.inspect_err(|_| {
            // A page table cannot go while a device is attached to it.
            if let Err(error) = device.release() {
                log::error!("device {dev_id} of the iommufd: {error}");
            }
        })?;
        Ok(Self {
            device,
            dev_id,
            page_requests,
            pasid_width: if needs.pasid { info.pasid_width } else { 0 },
            pasid_flags: pasid_flags(info.capabilities),
            nesting,
            allowed,
            alignment,
            blocked,
            lender: None,
            attached,
            pasids: BTreeMap::new(),
        })
    }

    /// What a page table for this endpoint must be, for an attachment to `to`.
    pub fn needs(&self, to: Attachment, faults: Option<&FaultQueue>) -> Needs {
        // Page requests that the driver did not enable come too: the device answers them INVALID_REQUEST, and reports
        // them to the driver as faults. In bypass everything that exists is mapped.
        let listens = match to {
            Attachment::Blocked | Attachment::Bypass => false,
            Attachment::Domain { page_requests, .. } => page_requests != PageRequests::Off,
        };
        Needs {
            dev_id: self.dev_id,
            pasid: self.pasid_width > 0,
            fault_queue: faults
                .filter(|_| listens && self.page_requests)
                .map(FaultQueue::id),
        }
    }

    /// The lender's mapping of guest memory, if that is this endpoint's bypass. A page table of the lender's need not be fit
    /// for PASIDs, and the kernel keeps a device with PASIDs off one that is not.
    pub fn lent_bypass(&self) -> Option<&lender::Mapping> {
        let lender = self.lender.as_ref()?;
        lender.mapping().filter(|_| self.pasids.is_empty())
    }

    /// Whose the device is.
    pub fn owner(&self) -> Owner {
        match &self.lender {
            None => Owner::Host,
            Some(lender) => Owner::FrontEnd {
                maps_memory: lender.mapping().is_some(),
            },
        }
    }

    /// The holes of `input` in what it can address.
    pub fn reserved(&self, input: IovaRange) -> Vec<ReservedRegion> {
        holes(&self.allowed, input)
            .into_iter()
            .map(|range| ReservedRegion {
                range,
                subtype: subtype(range, DOORBELLS),
            })
            .collect()
    }

    /// From the first address that it can use to the last; `None` when there is none.
    pub fn aperture(&self) -> Option<IovaRange> {
        let (first, last) = (self.allowed.first()?, self.allowed.last()?);
        Some(first.hull(last))
    }
}

/// Whether the kernel said that it does not do this, rather than that it failed.
pub(super) fn is_refusal(error: CallError) -> bool {
    [libc::EOPNOTSUPP, libc::EINVAL, libc::ENODEV].contains(&error.errno)
}

/// Attaches a device to nothing: the page table, and what the device turned out to need.
fn block(
    context: &Context,
    blocked: &mut AddressSpace,
    needs: Needs,
    device: &dyn Attach,
) -> Result<(u32, Needs), CallError> {
    let attach = |hwpt| device.attach(hwpt);
    match blocked.enter(context, needs, attach) {
        Err(error) if needs.pasid && is_refusal(error) => {
            // The device has PASIDs, its IOMMU does not.
            let needs = Needs {
                pasid: false,
                ..needs
            };
            Ok((blocked.enter(context, needs, attach)?, needs))
        }
        result => Ok((result?, needs)),
    }
}

/// Tries whether the device can be attached to a page table with a fault queue. It is back on `plain` afterwards.
///
/// `trial` is an address space of its own: where a replace within one fails, the kernel (7.2) forgets the device's
/// reserved regions there.
fn try_page_requests(
    context: &Context,
    trial: &mut AddressSpace,
    needs: Needs,
    device: &dyn Attach,
    plain: u32,
) -> Result<bool, CallError> {
    match trial.enter(context, needs, |hwpt| device.attach(hwpt)) {
        Ok(hwpt) => {
            device.attach(plain)?;
            trial.leave(hwpt);
            Ok(true)
        }
        Err(error) if is_refusal(error) => Ok(false),
        Err(error) => Err(error),
    }
}

fn pasid_flags(capabilities: u64) -> PasidFlags {
    let has = |bit: u32| capabilities & u64::from(bit) != 0;
    let mut flags = PasidFlags::empty();
    flags.set(
        PasidFlags::EXEC,
        has(uapi::iommufd_hw_capabilities_IOMMU_HW_CAP_PCI_PASID_EXEC),
    );
    flags.set(
        PasidFlags::PRIVILEGED,
        has(uapi::iommufd_hw_capabilities_IOMMU_HW_CAP_PCI_PASID_PRIV),
    );
    flags
}

/// What of `input` is in none of `allowed`, which is ascending and disjoint.
fn holes(allowed: &[IovaRange], input: IovaRange) -> Vec<IovaRange> {
    let mut holes = Vec::new();
    let mut next = Some(input.first.0);
    for range in allowed {
        let Some(first) = next else { break };
        if let Some(before) = range.first.0.checked_sub(1)
            && let Some(hole) = IovaRange::new(first, before.min(input.last.0))
        {
            holes.push(hole);
        }
        next = range.last.0.checked_add(1).map(|after| after.max(first));
        if range.last >= input.last {
            return holes;
        }
    }
    holes.extend(next.and_then(|first| IovaRange::new(first, input.last.0)));
    holes
}

/// Doorbells of message-signalled interrupts on x86 machines.
const X86_DOORBELLS: IovaRange = IovaRange {
    first: Iova(0xfee0_0000),
    last: Iova(0xfeef_ffff),
};

/// Where Linux maps the doorbells of an Arm machine for a device (`MSI_IOVA_BASE` of its SMMU drivers). QEMU's `virt`
/// has those of the guest in the same window.
const ARM_DOORBELLS: IovaRange = IovaRange {
    first: Iova(0x800_0000),
    last: Iova(0x80f_ffff),
};

/// The hole of this machine that is for doorbells.
const DOORBELLS: Option<IovaRange> = if cfg!(target_arch = "x86_64") {
    Some(X86_DOORBELLS)
} else if cfg!(target_arch = "aarch64") {
    Some(ARM_DOORBELLS)
} else {
    None
};

/// The kernel does not say what a hole is for. A guest that is not told of its doorbells maps them, and that is
/// refused: its devices would have no interrupts.
fn subtype(hole: IovaRange, doorbells: Option<IovaRange>) -> ResvMemSubtype {
    if Some(hole) == doorbells {
        ResvMemSubtype::Msi
    } else {
        ResvMemSubtype::Reserved
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(first: u64, last: u64) -> IovaRange {
        IovaRange::new(first, last).unwrap()
    }

    #[test]
    fn holes_are_what_is_not_allowed() {
        let input = range(0x1000, 0xffff);
        for (allowed, expected) in [
            (vec![], vec![input]),
            (vec![range(0, u64::MAX)], vec![]),
            (vec![range(0x1000, 0xffff)], vec![]),
            (
                vec![range(0, 0x1fff), range(0x3000, u64::MAX)],
                vec![range(0x2000, 0x2fff)],
            ),
            (
                vec![range(0x2000, 0x2fff), range(0x4000, 0x4fff)],
                vec![
                    range(0x1000, 0x1fff),
                    range(0x3000, 0x3fff),
                    range(0x5000, 0xffff),
                ],
            ),
            (vec![range(0x1_0000, 0x1_ffff)], vec![input]),
            (vec![range(0, 0xfff)], vec![input]),
            (
                vec![range(0, 0xfff), range(0x1_0000, 0x1_ffff)],
                vec![input],
            ),
        ] {
            assert_eq!(holes(&allowed, input), expected, "{allowed:?}");
        }
    }

    #[test]
    fn doorbells_are_told_from_other_holes() {
        use ResvMemSubtype::{Msi, Reserved};
        // As the kernel gives them: below fee00000 memory of an x86 machine, beyond 39 bits nothing.
        let x86 = [range(0, 0xfedf_ffff), range(0xfef0_0000, 0x7f_ffff_ffff)];
        let arm = [range(0, 0x7ff_ffff), range(0x810_0000, u64::MAX)];
        for (allowed, doorbells, subtypes) in [
            (&x86, Some(X86_DOORBELLS), vec![Msi, Reserved]),
            (&arm, Some(ARM_DOORBELLS), vec![Msi]),
            (&arm, Some(X86_DOORBELLS), vec![Reserved]),
            (&arm, None, vec![Reserved]),
        ] {
            let holes = holes(allowed, range(0, u64::MAX));
            let told = holes.into_iter().map(|hole| subtype(hole, doorbells));
            assert_eq!(told.collect::<Vec<_>>(), subtypes, "{allowed:x?}");
        }
        let part = range(0xfee0_0000, 0xfeef_fffe);
        assert_eq!(subtype(part, Some(X86_DOORBELLS)), Reserved);
    }
}
