// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Devices on the mock bus of a kernel built with CONFIG_IOMMUFD_TEST: real iommufd with only the hardware
//! replaced. For tests; the same commands serve the test program.

use super::attach::Attach;
use super::context::{Context, destroy};
use super::group::Group;
use super::kernel::{self, CallError};

/// `struct iommu_test_cmd` of the kernel's test interface.
///
/// Some commands take an address of this process; those that a device needs do not.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub(super) struct TestCommand {
    size: u32,
    op: u32,
    id: u32,
    reserved: u32,
    /// The union of the arguments of all commands.
    arguments: [u32; 12],
    last: u32,
    padding: u32,
}

const _: () = assert!(size_of::<TestCommand>() == 72);

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
        let mut arguments = [0; 12];
        (arguments[0], arguments[1]) = (first, second);
        let mut command = TestCommand {
            size: size_of::<TestCommand>() as u32,
            op,
            id: self.stdev,
            arguments,
            ..Default::default()
        };
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
