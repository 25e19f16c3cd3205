// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Requests as bytes: the device-readable parts.

use zerocopy::IntoBytes;

use vhost_device_iommu::spec::{
    Attach, AttachFlags, AttachTable, Detach, DetachFlags, DomainId, EndpointId, Gpa, GroupId,
    Invalidate, Iova, Map, MapFlags, PageResponse, PageResponseFlags, Pasid, Probe, TableFormat,
    Unmap,
};

pub const READ: u32 = 1;
pub const WRITE: u32 = 2;
pub const ATTACH_BYPASS: u32 = 1;
pub const ATTACH_PAGE_REQUEST: u32 = 2;
pub const PASID: u32 = 4;

pub fn attach(domain: u32, endpoint: u32, flags: u32) -> Vec<u8> {
    attach_pasid(domain, endpoint, flags, 0)
}

/// `flags` has [`PASID`] or the PASID is 0.
pub fn attach_pasid(domain: u32, endpoint: u32, flags: u32, pasid: u32) -> Vec<u8> {
    let flags = AttachFlags::from_bits_retain(flags);
    let request = Attach::new(DomainId(domain), EndpointId(endpoint), flags, Pasid(pasid));
    request.as_bytes().to_vec()
}

/// To a table of x86-64 with four levels.
pub fn attach_table(domain: u32, endpoint: u32, flags: u32, pasid: u32, root: u64) -> Vec<u8> {
    let request = AttachTable::new(
        DomainId(domain),
        EndpointId(endpoint),
        AttachFlags::from_bits_retain(flags),
        Pasid(pasid),
        TableFormat::X86_64,
        (48, 12),
        Gpa(root),
    );
    request.as_bytes().to_vec()
}

/// `first` and `last` are inclusive.
pub fn invalidate(domain: u32, first: u64, last: u64) -> Vec<u8> {
    let request = Invalidate::new(DomainId(domain), Iova(first), Iova(last));
    request.as_bytes().to_vec()
}

pub fn detach(domain: u32, endpoint: u32) -> Vec<u8> {
    let (domain, endpoint) = (DomainId(domain), EndpointId(endpoint));
    let request = Detach::new(domain, endpoint, DetachFlags::empty(), Pasid(0));
    request.as_bytes().to_vec()
}

pub fn detach_pasid(domain: u32, endpoint: u32, pasid: u32) -> Vec<u8> {
    let (domain, endpoint) = (DomainId(domain), EndpointId(endpoint));
    let request = Detach::new(domain, endpoint, DetachFlags::PASID, Pasid(pasid));
    request.as_bytes().to_vec()
}

/// `first` and `last` are inclusive.
pub fn map(domain: u32, first: u64, last: u64, gpa: u64, flags: u32) -> Vec<u8> {
    let flags = MapFlags::from_bits_retain(flags);
    let request = Map::new(DomainId(domain), Iova(first), Iova(last), Gpa(gpa), flags);
    request.as_bytes().to_vec()
}

/// `first` and `last` are inclusive.
pub fn unmap(domain: u32, first: u64, last: u64) -> Vec<u8> {
    let request = Unmap::new(DomainId(domain), Iova(first), Iova(last));
    request.as_bytes().to_vec()
}

pub fn probe(endpoint: u32) -> Vec<u8> {
    Probe::new(EndpointId(endpoint)).as_bytes().to_vec()
}

pub fn page_response(endpoint: u32, pasid: Option<u32>, group: u16, code: u16) -> Vec<u8> {
    let mut flags = PageResponseFlags::empty();
    flags.set(PageResponseFlags::PASID, pasid.is_some());
    let pasid = Pasid(pasid.unwrap_or(0));
    let request = PageResponse::new(EndpointId(endpoint), flags, pasid, GroupId(group), code);
    request.as_bytes().to_vec()
}
