// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Probe properties (§ PROBE request; draft 1 for PAGE_REQUEST and PASID, draft 2 for TABLE).

use std::mem::{offset_of, size_of};

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// The `type` of a property: 12 bits; the upper four bits of the field are zero (P57).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum PropertyType {
    /// VIRTIO_IOMMU_PROBE_T_NONE: end of the list.
    None = 0,
    /// VIRTIO_IOMMU_PROBE_T_RESV_MEM
    ResvMem = 1,
    /// VIRTIO_IOMMU_PROBE_T_PAGE_REQUEST (draft 1)
    PageRequest = 0x010,
    /// VIRTIO_IOMMU_PROBE_T_PASID (draft 1)
    Pasid = 0x011,
    /// VIRTIO_IOMMU_PROBE_T_TABLE (draft 2)
    Table = 0x012,
}

/// `struct virtio_iommu_probe_property`.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(C)]
pub struct PropertyHead {
    /// A [`PropertyType`].
    pub kind: U16,
    /// Length in bytes of what follows this header.
    pub length: U16,
}

impl PropertyHead {
    /// The header of a property that is `size` bytes long in all.
    pub const fn new(kind: PropertyType, size: usize) -> Self {
        Self {
            kind: U16::new(kind as u16),
            length: U16::new((size - size_of::<Self>()) as u16),
        }
    }
}

/// The `subtype` of a RESV_MEM property.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum ResvMemSubtype {
    /// VIRTIO_IOMMU_RESV_MEM_T_RESERVED: not to be mapped; accesses have unspecified effect.
    Reserved = 0,
    /// VIRTIO_IOMMU_RESV_MEM_T_MSI: a doorbell for message-signalled interrupts; never translated.
    Msi = 1,
}

/// `struct virtio_iommu_probe_resv_mem`: a region that must not be mapped.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(C)]
pub struct ResvMemProperty {
    /// Type RESV_MEM.
    pub head: PropertyHead,
    /// A [`ResvMemSubtype`].
    pub subtype: u8,
    /// Zero.
    pub reserved: [u8; 3],
    /// First virtual address.
    pub first: U64,
    /// Last virtual address, inclusive.
    pub last: U64,
}

/// Draft 1: the endpoint can raise page requests.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(C)]
pub struct PageRequestProperty {
    /// Type PAGE_REQUEST.
    pub head: PropertyHead,
    /// Zero.
    pub flags: U32,
    /// The most groups that can be outstanding at a time.
    pub max_pending: U32,
}

bitflags::bitflags! {
    /// Flags of the PASID property (draft 1).
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
    pub struct PasidFlags: u32 {
        /// The endpoint distinguishes execute accesses.
        const EXEC = 1 << 0;
        /// The endpoint distinguishes privileged accesses.
        const PRIVILEGED = 1 << 1;
    }
}

/// Draft 1: the endpoint has several address spaces.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(C)]
pub struct PasidProperty {
    /// Type PASID.
    pub head: PropertyHead,
    /// [`PasidFlags`].
    pub flags: U32,
    /// Width in bits of a PASID.
    pub width: u8,
    /// Zero.
    pub reserved: [u8; 3],
}

/// Draft 2: the endpoint can be attached to tables of a format.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(C)]
pub struct TableProperty {
    /// Type TABLE.
    pub head: PropertyHead,
    /// A [`super::TableFormat`].
    pub format: U16,
    /// The most bits of a virtual address.
    pub input_bits: u8,
    /// Bits of a physical address.
    pub output_bits: u8,
    /// Sizes of pages that an entry can describe, a bit each.
    pub page_size_mask: U64,
    /// Zero: no flag is defined.
    pub flags: U32,
    /// Zero.
    pub reserved: [u8; 4],
}

const _: () = {
    assert!(size_of::<PropertyHead>() == 4);
    assert!(size_of::<ResvMemProperty>() == 24);
    assert!(offset_of!(ResvMemProperty, subtype) == 4);
    assert!(offset_of!(ResvMemProperty, first) == 8);
    assert!(offset_of!(ResvMemProperty, last) == 16);
    assert!(size_of::<PageRequestProperty>() == 12);
    assert!(offset_of!(PageRequestProperty, max_pending) == 8);
    assert!(size_of::<PasidProperty>() == 12);
    assert!(offset_of!(PasidProperty, width) == 8);
    assert!(size_of::<TableProperty>() == 24);
    assert!(offset_of!(TableProperty, input_bits) == 6);
    assert!(offset_of!(TableProperty, page_size_mask) == 8);
    assert!(offset_of!(TableProperty, flags) == 16);
};
