// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Devices and what they are attached to.

use super::group::Group;
use super::kernel::CallError;

/// A device bound to our context. A page table (HWPT) is named by its id.
pub(super) trait Attach: Send + Sync {
    /// Moves the device to a page table, atomically, from wherever it is.
    fn attach(&self, hwpt: u32) -> Result<(), CallError>;

    /// Attaches one of its PASIDs that has no attachment.
    fn attach_pasid(&self, pasid: u32, hwpt: u32) -> Result<(), CallError>;

    /// Moves one of its PASIDs that is attached, atomically.
    fn replace_pasid(&self, pasid: u32, hwpt: u32) -> Result<(), CallError>;

    /// Blocks one of its PASIDs.
    fn detach_pasid(&self, pasid: u32) -> Result<(), CallError>;

    /// Its PCI address, as of [`crate::notation::pci_address`]; `None`: it has none, or that cannot be found out.
    fn pci_address(&self) -> Option<u32>;

    /// Its IOMMU group; `None`: it is alone, or that cannot be found out.
    fn group(&self) -> Option<&Group>;

    /// Takes the device off its page table; it is blocked. Nothing is asked of the device afterwards.
    fn release(&self) -> Result<(), CallError>;
}
