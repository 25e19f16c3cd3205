// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Devices on the mock bus of a kernel built with CONFIG_IOMMUFD_TEST, for tests. Everything but the hardware is the
//! kernel's own iommufd.

use super::context::{Context, destroy};
use super::device::Attach;
use super::group::Group;
use super::kernel::{self, CallError, TestCommand};
use super::startup::SetupError;
use crate::host::mapping::IovaRange;
use crate::host::table::{Table, TableSupport};
use crate::spec::TableFormat;

const MOCK_DOMAIN_REPLACE: u32 = 10;
const PASID_ATTACH: u32 = 18;
const PASID_REPLACE: u32 = 19;
const PASID_DETACH: u32 = 20;

/// `IOMMU_HW_INFO_TYPE_SELFTEST`
pub(super) const HW_INFO: u32 = 0xfeed_beef;
/// `IOMMU_HWPT_DATA_SELFTEST`
pub(super) const TABLE: u32 = 0xdead;
/// `IOMMU_HWPT_INVALIDATE_DATA_SELFTEST`
pub(super) const INVALIDATION: u32 = 0xdead_beef;
/// `IOMMU_TEST_INVALIDATE_FLAG_ALL`
const INVALIDATE_ALL: u64 = 1;

/// What the mock IOMMU is said to read. It reads nothing: it has four numbers that stand for what hardware keeps of a
/// table.
pub(super) const TABLES: TableSupport = TableSupport {
    format: TableFormat::X86_64,
    input_bits: 57,
    output_bits: 52,
    page_sizes: 1 << 12 | 1 << 21 | 1 << 30,
};

/// `struct iommu_hwpt_selftest`: what the four numbers are at first. Here it is the page of the root.
pub(super) fn table(table: &Table) -> [u64; 1] {
    [table.root.0 >> 12 & u64::from(u32::MAX)]
}

/// `struct iommu_hwpt_invalidate_selftest`: flags, and which of the numbers becomes zero. Here it is the one with the
/// number of the first page; the kernel refuses numbers above 3.
pub(super) fn invalidation(range: IovaRange) -> u64 {
    match range == IovaRange::ALL {
        true => INVALIDATE_ALL,
        false => (range.first.0 >> 12 & u64::from(u32::MAX)) << 32,
    }
}

/// A mock device with its id, which cannot be found out.
pub(super) fn device(
    context: &Context,
    stdev: u32,
    dev_id: Option<u32>,
) -> Result<(Box<dyn Attach>, u32), SetupError> {
    let dev_id = dev_id.ok_or(SetupError::MockWithoutDeviceId)?;
    let context = context.clone();
    Ok((Box::new(MockDevice { context, stdev }), dev_id))
}

/// A mock device.
struct MockDevice {
    context: Context,
    /// The object that stands for the device, not its id as a device.
    stdev: u32,
}

impl MockDevice {
    fn call(&self, op: u32, first: u32, second: u32) -> Result<(), CallError> {
        let mut command = TestCommand::new(op, self.stdev, [first, second]);
        kernel::call(self.context.fd(), &mut command)
    }
}

impl Attach for MockDevice {
    fn attach(&self, hwpt: u32) -> Result<(), CallError> {
        self.call(MOCK_DOMAIN_REPLACE, hwpt, 0)
    }

    fn attach_pasid(&self, pasid: u32, hwpt: u32) -> Result<(), CallError> {
        self.call(PASID_ATTACH, pasid, hwpt)
    }

    fn replace_pasid(&self, pasid: u32, hwpt: u32) -> Result<(), CallError> {
        self.call(PASID_REPLACE, pasid, hwpt)
    }

    fn detach_pasid(&self, pasid: u32) -> Result<(), CallError> {
        self.call(PASID_DETACH, pasid, 0)
    }

    fn pci_address(&self) -> Option<u32> {
        None
    }

    fn group(&self) -> Option<&Group> {
        None
    }

    /// A mock device without a page table does not exist: it ends.
    fn release(&self) -> Result<(), CallError> {
        destroy(&self.context, self.stdev)
    }
}
