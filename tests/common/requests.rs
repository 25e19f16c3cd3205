// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Requests as bytes: the device-readable parts.

use zerocopy::IntoBytes;
use zerocopy::little_endian::{U16, U32, U64};

use vhost_device_iommu::spec::{
    Attach, Detach, Head, Map, PageResponse, Probe, RequestType, Unmap,
};

pub const READ: u32 = 1;
pub const WRITE: u32 = 2;
pub const ATTACH_BYPASS: u32 = 1;
pub const ATTACH_PAGE_REQUEST: u32 = 2;
pub const PASID: u32 = 4;

fn head(kind: RequestType) -> Head {
    Head {
        kind: kind as u8,
        reserved: [0; 3],
    }
}

pub fn attach(domain: u32, endpoint: u32, flags: u32) -> Vec<u8> {
    attach_pasid(domain, endpoint, flags, 0)
}

/// `flags` has [`PASID`] or the PASID is 0.
pub fn attach_pasid(domain: u32, endpoint: u32, flags: u32, pasid: u32) -> Vec<u8> {
    let request = Attach {
        head: head(RequestType::Attach),
        domain: U32::new(domain),
        endpoint: U32::new(endpoint),
        flags: U32::new(flags),
        pasid: U32::new(pasid),
    };
    request.as_bytes().to_vec()
}

pub fn detach(domain: u32, endpoint: u32) -> Vec<u8> {
    let request = Detach {
        head: head(RequestType::Detach),
        domain: U32::new(domain),
        endpoint: U32::new(endpoint),
        pasid: U32::new(0),
        flags: U32::new(0),
    };
    request.as_bytes().to_vec()
}

pub fn detach_pasid(domain: u32, endpoint: u32, pasid: u32) -> Vec<u8> {
    let request = Detach {
        head: head(RequestType::Detach),
        domain: U32::new(domain),
        endpoint: U32::new(endpoint),
        pasid: U32::new(pasid),
        flags: U32::new(PASID),
    };
    request.as_bytes().to_vec()
}

/// `first` and `last` are inclusive.
pub fn map(domain: u32, first: u64, last: u64, gpa: u64, flags: u32) -> Vec<u8> {
    let request = Map {
        head: head(RequestType::Map),
        domain: U32::new(domain),
        virt_start: U64::new(first),
        virt_end: U64::new(last),
        phys_start: U64::new(gpa),
        flags: U32::new(flags),
    };
    request.as_bytes().to_vec()
}

/// `first` and `last` are inclusive.
pub fn unmap(domain: u32, first: u64, last: u64) -> Vec<u8> {
    let request = Unmap {
        head: head(RequestType::Unmap),
        domain: U32::new(domain),
        virt_start: U64::new(first),
        virt_end: U64::new(last),
        reserved: U32::new(0),
    };
    request.as_bytes().to_vec()
}

pub fn probe(endpoint: u32) -> Vec<u8> {
    let request = Probe {
        head: head(RequestType::Probe),
        endpoint: U32::new(endpoint),
        reserved: [0; 64],
    };
    request.as_bytes().to_vec()
}

pub fn page_response(endpoint: u32, pasid: Option<u32>, group: u16, code: u16) -> Vec<u8> {
    let request = PageResponse {
        head: head(RequestType::PageResponse),
        endpoint: U32::new(endpoint),
        flags: U32::new(u32::from(pasid.is_some())),
        pasid: U32::new(pasid.unwrap_or(0)),
        group_id: U16::new(group),
        code: U16::new(code),
        reserved: [0; 8],
    };
    request.as_bytes().to_vec()
}
