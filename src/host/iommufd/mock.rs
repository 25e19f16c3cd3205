// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Devices on the mock bus of a kernel built with CONFIG_IOMMUFD_TEST, for tests. Everything but the hardware is the
//! kernel's own iommufd.

use super::context::{Context, destroy};
use super::device::Attach;
use super::group::Group;
use super::kernel::{self, CallError, TestCommand};

const MOCK_DOMAIN_REPLACE: u32 = 10;
const PASID_ATTACH: u32 = 18;
const PASID_REPLACE: u32 = 19;
const PASID_DETACH: u32 = 20;

/// A mock device.
pub(super) struct MockDevice {
    context: Context,
    /// The object that stands for the device, not its id as a device.
    stdev: u32,
}

impl MockDevice {
    pub fn new(context: &Context, stdev: u32) -> Self {
        Self {
            context: context.clone(),
            stdev,
        }
    }

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

    fn group(&self) -> Option<&Group> {
        None
    }

    /// A mock device without a page table does not exist: it ends.
    fn release(&self) -> Result<(), CallError> {
        destroy(&self.context, self.stdev)
    }
}
