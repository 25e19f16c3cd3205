// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A host that does nothing: what is measured over it is the device.

use std::os::fd::RawFd;

use vhost_device_iommu::host::mapping::{IovaRange, Mapping};
use vhost_device_iommu::host::{
    Answer, Attachment, Cookie, EndpointProperties, Host, HostError, HostEvent, Limits,
    MemoryError, MemoryRegion, Requester, Translations,
};
use vhost_device_iommu::spec::{
    self, AttachFlags, DomainId, EndpointId, Gpa, Iova, MapFlags, Pasid,
};
use vm_memory::GuestMemoryMmap;

pub struct NullHost;

impl Host for NullHost {
    fn limits(&self) -> Limits {
        Limits {
            page_size_mask: !0xfff,
            input_range: IovaRange::ALL,
        }
    }
    fn has_endpoint(&self, _: EndpointId) -> bool {
        true
    }
    fn properties(&self, _: EndpointId) -> Option<EndpointProperties> {
        Some(EndpointProperties::default())
    }
    fn create_domain(&self, _: DomainId, _: Translations) -> Result<(), HostError> {
        Ok(())
    }
    fn destroy_domain(&self, _: DomainId) {}
    fn attach(&self, _: Requester, _: Attachment) -> Result<(), HostError> {
        Ok(())
    }
    fn map(&self, _: DomainId, _: &Mapping) -> Result<(), HostError> {
        Ok(())
    }
    fn unmap(&self, _: DomainId, _: IovaRange, _: &[Mapping]) -> Result<(), HostError> {
        Ok(())
    }
    fn invalidate(&self, _: DomainId, _: &[IovaRange]) -> Result<(), HostError> {
        Ok(())
    }
    fn hold_tables(&self) {}
    fn release_tables(&self) {}
    fn joins_requests(&self) -> bool {
        false
    }
    fn update_memory(
        &self,
        _: &GuestMemoryMmap,
        _: &[MemoryRegion],
        _: &[MemoryRegion],
    ) -> Result<(), Vec<MemoryError>> {
        Ok(())
    }
    fn event_fds(&self) -> Vec<RawFd> {
        Vec::new()
    }
    fn take_events(&self, _: &mut dyn FnMut(HostEvent)) {}
    fn respond(&self, _: Cookie, _: Answer) -> Result<(), HostError> {
        Ok(())
    }
    fn remove_endpoint(&self, _: EndpointId) {}
}

pub fn attach(domain: u32, endpoint: u32) -> [u8; 20] {
    let (domain, endpoint) = (DomainId(domain), EndpointId(endpoint));
    let flags = AttachFlags::empty();
    zerocopy::transmute!(spec::Attach::new(domain, endpoint, flags, Pasid(0)))
}

pub fn map(domain: u32, iova: u64, length: u64) -> [u8; 36] {
    let (first, last) = (Iova(iova), Iova(iova + length - 1));
    let flags = MapFlags::READ | MapFlags::WRITE;
    zerocopy::transmute!(spec::Map::new(
        DomainId(domain),
        first,
        last,
        Gpa(iova),
        flags
    ))
}

pub fn unmap(domain: u32, iova: u64, length: u64) -> [u8; 28] {
    let (first, last) = (Iova(iova), Iova(iova + length - 1));
    zerocopy::transmute!(spec::Unmap::new(DomainId(domain), first, last))
}
