// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A host that does nothing: what is measured over it is the device.

use std::os::fd::RawFd;

use vhost_device_iommu::host::mapping::{IovaRange, Mapping, SharedMappings};
use vhost_device_iommu::host::{
    Answer, Attachment, Cookie, EndpointProperties, Host, HostError, HostEvent, Limits,
    MemoryError, MemoryRegion, Requester,
};
use vhost_device_iommu::spec::{self, DomainId, EndpointId, Head, RequestType};
use vm_memory::GuestMemoryMmap;
use zerocopy::little_endian::{U32, U64};

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
    fn create_domain(&self, _: DomainId, _: SharedMappings) -> Result<(), HostError> {
        Ok(())
    }
    fn destroy_domain(&self, _: DomainId) {}
    fn attach(&self, _: Requester, _: Attachment) -> Result<(), HostError> {
        Ok(())
    }
    fn map(&self, _: DomainId, _: &Mapping) -> Result<(), HostError> {
        Ok(())
    }
    fn unmap(&self, _: DomainId, _: IovaRange) -> Result<(), HostError> {
        Ok(())
    }
    fn joins_unmaps(&self) -> bool {
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

fn head(kind: RequestType) -> Head {
    Head {
        kind: kind as u8,
        reserved: [0; 3],
    }
}

pub fn attach(domain: u32, endpoint: u32) -> [u8; 20] {
    let request = spec::Attach {
        head: head(RequestType::Attach),
        domain: U32::new(domain),
        endpoint: U32::new(endpoint),
        flags: U32::new(0),
        pasid: U32::new(0),
    };
    zerocopy::transmute!(request)
}

pub fn map(domain: u32, iova: u64, length: u64) -> [u8; 36] {
    let request = spec::Map {
        head: head(RequestType::Map),
        domain: U32::new(domain),
        virt_start: U64::new(iova),
        virt_end: U64::new(iova + length - 1),
        phys_start: U64::new(iova),
        flags: U32::new(3),
    };
    zerocopy::transmute!(request)
}

pub fn unmap(domain: u32, iova: u64, length: u64) -> [u8; 28] {
    let request = spec::Unmap {
        head: head(RequestType::Unmap),
        domain: U32::new(domain),
        virt_start: U64::new(iova),
        virt_end: U64::new(iova + length - 1),
        reserved: U32::new(0),
    };
    zerocopy::transmute!(request)
}
