// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Requests and their tail (§ Device operations; draft 1 for PASID, PAGE_REQUEST and PAGE_RESPONSE). Those of draft 2
//! are in `table`.

use std::mem::{offset_of, size_of};

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::ids::{DomainId, EndpointId, Gpa, GroupId, Iova, Pasid};

/// The `type` of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum RequestType {
    /// VIRTIO_IOMMU_T_ATTACH
    Attach = 1,
    /// VIRTIO_IOMMU_T_DETACH
    Detach = 2,
    /// VIRTIO_IOMMU_T_MAP
    Map = 3,
    /// VIRTIO_IOMMU_T_UNMAP
    Unmap = 4,
    /// VIRTIO_IOMMU_T_PROBE
    Probe = 5,
    /// VIRTIO_IOMMU_T_ATTACH_TABLE (draft 2)
    AttachTable = 6,
    /// VIRTIO_IOMMU_T_INVALIDATE (draft 2)
    Invalidate = 7,
    /// VIRTIO_IOMMU_T_PAGE_RESPONSE (draft 1)
    PageResponse = 8,
}

impl RequestType {
    /// The type with this number; `None` when the specification knows none.
    pub fn from_wire(number: u8) -> Option<Self> {
        Some(match number {
            1 => Self::Attach,
            2 => Self::Detach,
            3 => Self::Map,
            4 => Self::Unmap,
            5 => Self::Probe,
            6 => Self::AttachTable,
            7 => Self::Invalidate,
            8 => Self::PageResponse,
            _ => return None,
        })
    }
}

/// The `status` in the tail of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Status {
    /// VIRTIO_IOMMU_S_OK: the request happened completely.
    Ok = 0,
    /// VIRTIO_IOMMU_S_IOERR: a virtio communication error.
    IoErr = 1,
    /// VIRTIO_IOMMU_S_UNSUPP: unsupported request.
    Unsupp = 2,
    /// VIRTIO_IOMMU_S_DEVERR: an internal error of the device.
    DevErr = 3,
    /// VIRTIO_IOMMU_S_INVAL: invalid parameters.
    Inval = 4,
    /// VIRTIO_IOMMU_S_RANGE: out-of-range parameters.
    Range = 5,
    /// VIRTIO_IOMMU_S_NOENT: entry not found.
    NoEnt = 6,
    /// VIRTIO_IOMMU_S_FAULT: bad address.
    Fault = 7,
    /// VIRTIO_IOMMU_S_NOMEM: not enough resources.
    NoMem = 8,
}

/// `struct virtio_iommu_req_head`.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct Head {
    /// A [`RequestType`].
    pub kind: u8,
    /// Ignored (R17).
    pub reserved: [u8; 3],
}

impl Head {
    /// The head of a request of this type.
    pub const fn new(kind: RequestType) -> Self {
        Self {
            kind: kind as u8,
            reserved: [0; 3],
        }
    }
}

/// Length in bytes of [`Tail`].
pub const TAIL_LEN: usize = size_of::<Tail>();

/// `struct virtio_iommu_req_tail`: the last bytes of the device-writable part.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct Tail {
    /// A [`Status`].
    pub status: u8,
    /// Zero (R19).
    pub reserved: [u8; 3],
}

bitflags::bitflags! {
    /// Flags of ATTACH.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct AttachFlags: u32 {
        /// VIRTIO_IOMMU_ATTACH_F_BYPASS: a bypass domain.
        const BYPASS = 1 << 0;
        /// VIRTIO_IOMMU_ATTACH_F_PAGE_REQUEST (draft 1): report page requests of this attachment.
        const PAGE_REQUEST = 1 << 1;
        /// VIRTIO_IOMMU_ATTACH_F_PASID (draft 1): the attachment is for (endpoint, PASID).
        const PASID = 1 << 2;
    }

    /// Flags of DETACH (draft 1).
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct DetachFlags: u32 {
        /// VIRTIO_IOMMU_DETACH_F_PASID: detach (endpoint, PASID). The same bit as in ATTACH.
        const PASID = 1 << 2;
    }

    /// Flags of MAP.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
    pub struct MapFlags: u32 {
        /// VIRTIO_IOMMU_MAP_F_READ
        const READ = 1 << 0;
        /// VIRTIO_IOMMU_MAP_F_WRITE
        const WRITE = 1 << 1;
        /// VIRTIO_IOMMU_MAP_F_MMIO
        const MMIO = 1 << 2;
    }

    /// Flags of PAGE_RESPONSE (draft 1).
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct PageResponseFlags: u32 {
        /// VIRTIO_IOMMU_PAGE_RESPONSE_F_PASID: `pasid` is valid.
        const PASID = 1 << 0;
    }
}

/// `struct virtio_iommu_req_attach`, device-readable part.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct Attach {
    /// Type ATTACH.
    pub head: Head,
    /// The domain, created when it does not exist.
    pub domain: U32,
    /// The endpoint.
    pub endpoint: U32,
    /// [`AttachFlags`].
    pub flags: U32,
    /// Draft 1: the PASID when the flag PASID is set; zero otherwise. The specification's `reserved[4]`.
    pub pasid: U32,
}

/// `struct virtio_iommu_req_detach`, device-readable part.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct Detach {
    /// Type DETACH.
    pub head: Head,
    /// The domain.
    pub domain: U32,
    /// The endpoint.
    pub endpoint: U32,
    /// Draft 1: the PASID when the flag PASID is set. First half of the specification's `reserved[8]`.
    pub pasid: U32,
    /// Draft 1: [`DetachFlags`]. Second half of the specification's `reserved[8]`.
    pub flags: U32,
}

/// `struct virtio_iommu_req_map`, device-readable part.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct Map {
    /// Type MAP.
    pub head: Head,
    /// The domain.
    pub domain: U32,
    /// First virtual address.
    pub virt_start: U64,
    /// Last virtual address, inclusive.
    pub virt_end: U64,
    /// First guest-physical address.
    pub phys_start: U64,
    /// [`MapFlags`].
    pub flags: U32,
}

/// `struct virtio_iommu_req_unmap`, device-readable part.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct Unmap {
    /// Type UNMAP.
    pub head: Head,
    /// The domain.
    pub domain: U32,
    /// First virtual address.
    pub virt_start: U64,
    /// Last virtual address, inclusive.
    pub virt_end: U64,
    /// Zero (U48).
    pub reserved: U32,
}

/// `struct virtio_iommu_req_probe`, device-readable part.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct Probe {
    /// Type PROBE.
    pub head: Head,
    /// The endpoint.
    pub endpoint: U32,
    /// Ignored (P54).
    pub reserved: [u8; 64],
}

/// `struct virtio_iommu_req_page_response`, device-readable part (draft 1).
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct PageResponse {
    /// Type PAGE_RESPONSE.
    pub head: Head,
    /// The endpoint.
    pub endpoint: U32,
    /// [`PageResponseFlags`].
    pub flags: U32,
    /// The PASID when the flag PASID is set; zero otherwise.
    pub pasid: U32,
    /// The group, as in its events.
    pub group_id: U16,
    /// A [`PageResponseCode`].
    pub code: U16,
    /// Zero.
    pub reserved: [u8; 8],
}

// Requests as a driver makes them. Nothing is checked: flags may have unknown bits, a range may end before it begins, and
// a PASID may come without its flag.
impl Attach {
    /// ATTACH; `pasid` is 0 without the flag PASID.
    pub const fn new(
        domain: DomainId,
        endpoint: EndpointId,
        flags: AttachFlags,
        pasid: Pasid,
    ) -> Self {
        Self {
            head: Head::new(RequestType::Attach),
            domain: U32::new(domain.0),
            endpoint: U32::new(endpoint.0),
            flags: U32::new(flags.bits()),
            pasid: U32::new(pasid.0),
        }
    }
}

impl Detach {
    /// DETACH; `pasid` is 0 without the flag PASID.
    pub const fn new(
        domain: DomainId,
        endpoint: EndpointId,
        flags: DetachFlags,
        pasid: Pasid,
    ) -> Self {
        Self {
            head: Head::new(RequestType::Detach),
            domain: U32::new(domain.0),
            endpoint: U32::new(endpoint.0),
            pasid: U32::new(pasid.0),
            flags: U32::new(flags.bits()),
        }
    }
}

impl Map {
    /// MAP of the addresses `first` to `last`, both included, to those from `gpa` on.
    pub const fn new(domain: DomainId, first: Iova, last: Iova, gpa: Gpa, flags: MapFlags) -> Self {
        Self {
            head: Head::new(RequestType::Map),
            domain: U32::new(domain.0),
            virt_start: U64::new(first.0),
            virt_end: U64::new(last.0),
            phys_start: U64::new(gpa.0),
            flags: U32::new(flags.bits()),
        }
    }
}

impl Unmap {
    /// UNMAP of the addresses `first` to `last`, both included.
    pub const fn new(domain: DomainId, first: Iova, last: Iova) -> Self {
        Self {
            head: Head::new(RequestType::Unmap),
            domain: U32::new(domain.0),
            virt_start: U64::new(first.0),
            virt_end: U64::new(last.0),
            reserved: U32::new(0),
        }
    }
}

impl Probe {
    /// PROBE.
    pub const fn new(endpoint: EndpointId) -> Self {
        Self {
            head: Head::new(RequestType::Probe),
            endpoint: U32::new(endpoint.0),
            reserved: [0; 64],
        }
    }
}

impl PageResponse {
    /// PAGE_RESPONSE; `pasid` is 0 without the flag PASID, and `code` may be none of [`PageResponseCode`].
    pub const fn new(
        endpoint: EndpointId,
        flags: PageResponseFlags,
        pasid: Pasid,
        group: GroupId,
        code: u16,
    ) -> Self {
        Self {
            head: Head::new(RequestType::PageResponse),
            endpoint: U32::new(endpoint.0),
            flags: U32::new(flags.bits()),
            pasid: U32::new(pasid.0),
            group_id: U16::new(group.0),
            code: U16::new(code),
            reserved: [0; 8],
        }
    }
}

/// The `code` of a PAGE_RESPONSE, in PCI's words (PCIe, Page Request Group Response).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u16)]
pub enum PageResponseCode {
    /// The translations are in place: retry.
    Success = 0,
    /// No translation will come: do not retry.
    InvalidRequest = 1,
    /// Catastrophic: the endpoint's page requests are off until it is attached again.
    ResponseFailure = 2,
}

impl PageResponseCode {
    /// The code with this number; `None` when there is none.
    pub fn from_wire(number: u16) -> Option<Self> {
        Some(match number {
            0 => Self::Success,
            1 => Self::InvalidRequest,
            2 => Self::ResponseFailure,
            _ => return None,
        })
    }
}

const _: () = {
    assert!(size_of::<Head>() == 4);
    assert!(size_of::<Tail>() == 4);
    assert!(size_of::<Attach>() == 20);
    assert!(offset_of!(Attach, flags) == 12);
    assert!(offset_of!(Attach, pasid) == 16);
    assert!(size_of::<Detach>() == 20);
    assert!(offset_of!(Detach, pasid) == 12);
    assert!(offset_of!(Detach, flags) == 16);
    assert!(size_of::<Map>() == 36);
    assert!(offset_of!(Map, virt_start) == 8);
    assert!(offset_of!(Map, phys_start) == 24);
    assert!(offset_of!(Map, flags) == 32);
    assert!(size_of::<Unmap>() == 28);
    assert!(offset_of!(Unmap, reserved) == 24);
    assert!(size_of::<Probe>() == 72);
    assert!(offset_of!(Probe, reserved) == 8);
    assert!(size_of::<PageResponse>() == 28);
    assert!(offset_of!(PageResponse, pasid) == 12);
    assert!(offset_of!(PageResponse, group_id) == 16);
    assert!(offset_of!(PageResponse, code) == 18);
    assert!(offset_of!(PageResponse, reserved) == 20);
};
