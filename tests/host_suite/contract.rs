// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The iommufd host on its own, held to the `Host` contract.

mod failures;
mod groups;
mod maps;
mod moves;
mod vfio;

use std::sync::{Arc, RwLock};

use vhost_device_iommu::host::iommufd::{EndpointSource, IommufdHost};
use vhost_device_iommu::host::mapping::{IovaRange, Mapping, MappingTable, SharedMappings};
use vhost_device_iommu::host::{
    Attachment, Host, HostError, HostEvent, MemoryError, MemoryRegion, PageRequestGroup,
    PageRequests, Requester,
};
use vhost_device_iommu::spec::{DomainId, EndpointId, Gpa, Iova, MapFlags, Pasid};
use vm_memory::GuestMemoryMmap;

use crate::kernel::{Kernel, MockDevice};
use crate::ram::Ram;

const MIB: u64 = 1 << 20;
const READ_WRITE: MapFlags = MapFlags::READ.union(MapFlags::WRITE);

/// A host, the kernel below it, and guest memory; plays the device above it.
struct Bench {
    host: IommufdHost,
    ram: Ram,
    // Dropped last: the context outlives the host in it.
    kernel: Kernel,
}

/// A domain as the device has it.
struct Domain {
    id: DomainId,
    table: SharedMappings,
}

impl Bench {
    /// No endpoint, no memory.
    fn new() -> Self {
        let kernel = Kernel::open();
        let host = IommufdHost::new(kernel.descriptor()).unwrap();
        Self {
            host,
            ram: Ram::new(16 * MIB),
            kernel,
        }
    }

    /// With all of the memory at guest-physical address 16 MiB, where bypass can reach it.
    fn with_memory() -> Self {
        let bench = Self::new();
        let region = bench.ram.region(16 * MIB, 0, 16 * MIB);
        bench.update_memory(&[], &[region]).unwrap();
        bench
    }

    fn endpoint(&self, id: u32) -> MockDevice {
        let device = self.kernel.mock_device();
        let source = EndpointSource::Mock {
            stdev_id: device.stdev,
        };
        self.host
            .add_endpoint(EndpointId(id), source, Some(device.dev))
            .unwrap();
        device
    }

    fn update_memory(
        &self,
        removed: &[MemoryRegion],
        added: &[MemoryRegion],
    ) -> Result<(), Vec<MemoryError>> {
        self.host
            .update_memory(&GuestMemoryMmap::new(), removed, added)
    }

    fn domain(&self, id: u32) -> Domain {
        let domain = Domain {
            id: DomainId(id),
            table: Arc::new(RwLock::new(MappingTable::new())),
        };
        self.host
            .create_domain(domain.id, domain.table.clone())
            .unwrap();
        domain
    }

    /// What `make` makes, and the address space that came with it.
    fn new_ioas<T>(&self, make: impl FnOnce() -> T) -> (T, u32) {
        let before = self.kernel.address_spaces();
        let made = make();
        let after = self.kernel.address_spaces();
        let new: Vec<_> = after.iter().filter(|id| !before.contains(id)).collect();
        assert_eq!(new.len(), 1);
        (made, *new[0])
    }

    fn domain_and_its_ioas(&self, id: u32) -> (Domain, u32) {
        self.new_ioas(|| self.domain(id))
    }

    fn attach(&self, endpoint: u32, to: Attachment) -> Result<(), HostError> {
        self.host.attach(plain(endpoint), to)
    }

    fn map(&self, domain: &Domain, iova: u64, length: u64, gpa: u64) -> Result<(), HostError> {
        self.map_with(domain, iova, length, gpa, READ_WRITE)
    }

    /// As the device does it: first the table, then the host.
    fn map_with(
        &self,
        domain: &Domain,
        iova: u64,
        length: u64,
        gpa: u64,
        flags: MapFlags,
    ) -> Result<(), HostError> {
        let mapping = Mapping {
            range: range(iova, length),
            gpa: Gpa(gpa),
            flags,
        };
        domain.table.write().unwrap().insert(&mapping).unwrap();
        self.host.map(domain.id, &mapping).inspect_err(|_| {
            domain
                .table
                .write()
                .unwrap()
                .remove(&mapping.range, |_| ())
                .unwrap();
        })
    }

    fn unmap(&self, domain: &Domain, iova: u64, length: u64) -> Result<(), HostError> {
        self.unmap_range(domain, range(iova, length))
    }

    fn unmap_range(&self, domain: &Domain, range: IovaRange) -> Result<(), HostError> {
        let mut removed = Vec::new();
        let mut table = domain.table.write().unwrap();
        table
            .remove(&range, |mapping| removed.push(mapping))
            .unwrap();
        drop(table);
        self.host.unmap(domain.id, range, &removed)
    }

    /// Whether the device reaches the memory from `offset` on, through addresses from `iova` on.
    fn reaches(&self, device: MockDevice, iova: u64, length: u64, offset: u64) -> bool {
        let hwpt = self.kernel.page_table(device);
        self.kernel.maps(hwpt, iova, length, self.ram.at(offset))
    }

    /// Whether it reaches no page of it.
    fn reaches_none(&self, device: MockDevice, iova: u64, length: u64, offset: u64) -> bool {
        let hwpt = self.kernel.page_table(device);
        self.kernel
            .maps_none(hwpt, iova, length, self.ram.at(offset))
    }

    /// The page requests that have come.
    fn groups(&self) -> Vec<PageRequestGroup> {
        let mut groups = Vec::new();
        loop {
            let before = groups.len();
            self.host.take_events(&mut |event| match event {
                HostEvent::PageRequest(group) => groups.push(group),
                other => panic!("mock devices report no faults: {other:?}"),
            });
            if groups.len() == before {
                return groups;
            }
        }
    }
}

fn range(first: u64, length: u64) -> IovaRange {
    IovaRange::new(first, first + (length - 1)).unwrap()
}

fn plain(endpoint: u32) -> Requester {
    Requester {
        endpoint: EndpointId(endpoint),
        pasid: None,
    }
}

fn with_pasid(endpoint: u32, pasid: u32) -> Requester {
    Requester {
        pasid: Some(Pasid(pasid)),
        ..plain(endpoint)
    }
}

fn reported(domain: &Domain) -> Attachment {
    in_domain(domain, PageRequests::Reported)
}

fn unwanted(domain: &Domain) -> Attachment {
    in_domain(domain, PageRequests::Unwanted)
}

fn in_domain(domain: &Domain, page_requests: PageRequests) -> Attachment {
    Attachment::Domain {
        domain: domain.id,
        page_requests,
    }
}

/// An address as the host has it in its events.
fn iova(address: u64) -> Iova {
    Iova(address)
}
