// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Events (§ Fault reporting; draft 1 for page requests).

use std::mem::{offset_of, size_of};

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// The `reason` of an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Reason {
    /// VIRTIO_IOMMU_FAULT_R_UNKNOWN: an internal error.
    Unknown = 0,
    /// VIRTIO_IOMMU_FAULT_R_DOMAIN: the endpoint is not attached to a domain.
    Domain = 1,
    /// VIRTIO_IOMMU_FAULT_R_MAPPING: no mapping, or one without the permission.
    Mapping = 2,
}

bitflags::bitflags! {
    /// Flags of an event.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
    pub struct EventFlags: u32 {
        /// VIRTIO_IOMMU_FAULT_F_READ: a read access.
        const READ = 1 << 0;
        /// VIRTIO_IOMMU_FAULT_F_WRITE: a write access.
        const WRITE = 1 << 1;
        /// VIRTIO_IOMMU_FAULT_F_EXEC: an instruction fetch.
        const EXEC = 1 << 2;
        /// Draft 1: a privileged access.
        const PRIVILEGED = 1 << 3;
        /// Draft 1: the last page request of its group.
        const LAST = 1 << 4;
        /// Draft 1: recoverable; the driver answers with PAGE_RESPONSE.
        const PAGE_REQUEST = 1 << 5;
        /// VIRTIO_IOMMU_FAULT_F_ADDRESS: `address` is valid.
        const ADDRESS = 1 << 8;
        /// Draft 1: `pasid` is valid.
        const PASID = 1 << 9;
        /// Draft 1: `group_id` is valid.
        const GROUP_ID = 1 << 10;

        /// The access kinds among the flags.
        const ACCESS = Self::READ.bits() | Self::WRITE.bits() | Self::EXEC.bits() | Self::PRIVILEGED.bits();
    }
}

/// Length in bytes of [`FaultReport`].
pub const FAULT_REPORT_LEN: usize = size_of::<FaultReport>();
/// Length in bytes of [`Event`].
pub const EVENT_LEN: usize = size_of::<Event>();

/// `struct virtio_iommu_fault`: an unrecoverable fault.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(C)]
pub struct FaultReport {
    /// A [`Reason`].
    pub reason: u8,
    /// Zero (E65, E70).
    pub reserved: [u8; 3],
    /// [`EventFlags`].
    pub flags: U32,
    /// The endpoint.
    pub endpoint: U32,
    /// Zero.
    pub reserved1: U32,
    /// The first failing byte's address.
    pub address: U64,
}

/// Draft 1: the extended event, one page request of a group. Its first 24 bytes are a [`FaultReport`].
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(C)]
pub struct Event {
    /// A [`Reason`].
    pub reason: u8,
    /// Zero (E65, E70).
    pub reserved: [u8; 3],
    /// [`EventFlags`].
    pub flags: U32,
    /// The endpoint.
    pub endpoint: U32,
    /// The PASID when the flag PASID is set; zero otherwise.
    pub pasid: U32,
    /// The granule-aligned address.
    pub address: U64,
    /// The group when the flag GROUP_ID is set.
    pub group_id: U16,
    /// Zero.
    pub reserved2: U16,
    /// Bytes that the requester expects to need from `address`; 0 without a hint.
    pub length: U32,
}

const _: () = {
    assert!(size_of::<FaultReport>() == 24);
    assert!(offset_of!(FaultReport, flags) == 4);
    assert!(offset_of!(FaultReport, endpoint) == 8);
    assert!(offset_of!(FaultReport, address) == 16);
    assert!(size_of::<Event>() == 32);
    assert!(offset_of!(Event, pasid) == 12);
    assert!(offset_of!(Event, address) == 16);
    assert!(offset_of!(Event, group_id) == 24);
    assert!(offset_of!(Event, length) == 28);
};
