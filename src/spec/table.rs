// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Tables of the driver: the requests ATTACH_TABLE and INVALIDATE, and the formats (draft 2).

use std::mem::{offset_of, size_of};

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::ids::{DomainId, EndpointId, Gpa, Iova, Pasid};
use super::request::{AttachFlags, Head, RequestType};

/// The `format` of a table (draft 2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u16)]
pub enum TableFormat {
    /// VIRTIO_IOMMU_TABLE_X86_64: the page tables of x86 processors in 64-bit mode.
    X86_64 = 0x10,
    /// VIRTIO_IOMMU_TABLE_ARM64: stage 1 tables of VMSAv8-64.
    Arm64 = 0x11,
}

impl TableFormat {
    /// The format with this number; `None` when there is none.
    pub fn from_wire(number: u16) -> Option<Self> {
        Some(match number {
            0x10 => Self::X86_64,
            0x11 => Self::Arm64,
            _ => return None,
        })
    }
}

/// `struct virtio_iommu_req_attach_table`, device-readable part (draft 2).
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct AttachTable {
    /// Type ATTACH_TABLE.
    pub head: Head,
    /// The domain, created when it does not exist.
    pub domain: U32,
    /// The endpoint.
    pub endpoint: U32,
    /// [`AttachFlags`], without BYPASS.
    pub flags: U32,
    /// The PASID when the flag PASID is set; zero otherwise.
    pub pasid: U32,
    /// A [`TableFormat`].
    pub format: U16,
    /// Bits of a virtual address.
    pub input_bits: u8,
    /// The logarithm to base two of the smallest page, in bytes.
    pub granule: u8,
    /// Guest-physical address of the root.
    pub table: U64,
    /// Depends on the format.
    pub attributes: U64,
    /// Zero.
    pub reserved: [u8; 20],
}

/// `struct virtio_iommu_req_invalidate`, device-readable part (draft 2).
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct Invalidate {
    /// Type INVALIDATE.
    pub head: Head,
    /// The domain.
    pub domain: U32,
    /// First virtual address.
    pub virt_start: U64,
    /// Last virtual address, inclusive.
    pub virt_end: U64,
    /// Zero: no flag is defined.
    pub flags: U32,
}

// As a driver makes them: nothing is checked.
impl AttachTable {
    /// ATTACH_TABLE of a table without attributes; `pasid` is 0 without the flag PASID, and `shape` is `input_bits` and
    /// `granule`.
    pub const fn new(
        domain: DomainId,
        endpoint: EndpointId,
        flags: AttachFlags,
        pasid: Pasid,
        format: TableFormat,
        shape: (u8, u8),
        root: Gpa,
    ) -> Self {
        Self {
            head: Head::new(RequestType::AttachTable),
            domain: U32::new(domain.0),
            endpoint: U32::new(endpoint.0),
            flags: U32::new(flags.bits()),
            pasid: U32::new(pasid.0),
            format: U16::new(format as u16),
            input_bits: shape.0,
            granule: shape.1,
            table: U64::new(root.0),
            attributes: U64::new(0),
            reserved: [0; 20],
        }
    }
}

impl Invalidate {
    /// INVALIDATE of the addresses `first` to `last`, both included.
    pub const fn new(domain: DomainId, first: Iova, last: Iova) -> Self {
        Self {
            head: Head::new(RequestType::Invalidate),
            domain: U32::new(domain.0),
            virt_start: U64::new(first.0),
            virt_end: U64::new(last.0),
            flags: U32::new(0),
        }
    }
}

const _: () = {
    assert!(size_of::<AttachTable>() == 60);
    assert!(offset_of!(AttachTable, format) == 20);
    assert!(offset_of!(AttachTable, granule) == 23);
    assert!(offset_of!(AttachTable, table) == 24);
    assert!(offset_of!(AttachTable, attributes) == 32);
    assert!(offset_of!(AttachTable, reserved) == 40);
    assert!(size_of::<Invalidate>() == 28);
    assert!(offset_of!(Invalidate, virt_start) == 8);
    assert!(offset_of!(Invalidate, flags) == 24);
};
