// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The iommufd host on its own: the cases that every host is held to, and what the kernel brings in addition.

mod failures;
mod groups;
mod lent;
mod maps;
mod moves;
mod tables;
mod vfio;

use std::cell::RefCell;
use std::collections::BTreeMap;

use vhost_device_iommu::host::iommufd::{EndpointSource, IommufdHost};
use vhost_device_iommu::host::mapping::IovaRange;
use vhost_device_iommu::host::{
    Attachment, Host, HostError, MemoryError, MemoryRegion, PageRequests, Requester, Translations,
};
use vhost_device_iommu::spec::{DomainId, EndpointId, EventFlags, Gpa, MapFlags};
use vm_memory::GuestMemoryMmap;

use crate::cases::{
    self, Bench as _, Domain, IOVA, MIB, Ram, in_domain, range, reported, unwanted, with_pasid,
};
use crate::kernel::{Kernel, MockDevice};

/// A host, the kernel below it, and guest memory.
struct Bench {
    host: IommufdHost,
    ram: Ram,
    devices: RefCell<BTreeMap<EndpointId, MockDevice>>,
    /// Ids in the context.
    address_spaces: RefCell<BTreeMap<DomainId, u32>>,
    // Dropped last: the context outlives the host in it.
    kernel: Kernel,
}

impl Bench {
    fn endpoint(&self, id: u32) -> MockDevice {
        let device = self.kernel.mock_device();
        let source = EndpointSource::Mock {
            stdev_id: device.stdev,
        };
        self.host
            .add_endpoint(EndpointId(id), source, Some(device.dev))
            .unwrap();
        self.devices.borrow_mut().insert(EndpointId(id), device);
        device
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
        let domain = self.domain(id);
        let ioas = self.address_spaces.borrow()[&domain.id];
        (domain, ioas)
    }

    /// The page table of a requester; `None`: it is a PASID that is blocked, or its device has ended.
    fn page_table(&self, requester: Requester) -> Option<u32> {
        let device = self.devices.borrow()[&requester.endpoint];
        let pasid = requester.pasid.map_or(0, |pasid| pasid.0);
        self.kernel.page_table_of(device, pasid)
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
}

impl cases::Bench for Bench {
    fn new() -> Self {
        let kernel = Kernel::open();
        let host = IommufdHost::new(kernel.descriptor()).unwrap();
        Self {
            host,
            ram: Ram::new(cases::RAM),
            devices: RefCell::default(),
            address_spaces: RefCell::default(),
            kernel,
        }
    }

    fn host(&self) -> &dyn Host {
        &self.host
    }

    fn ram(&self) -> &Ram {
        &self.ram
    }

    fn add_endpoint(&self, id: u32) {
        self.endpoint(id);
    }

    fn update_memory(
        &self,
        removed: &[MemoryRegion],
        added: &[MemoryRegion],
    ) -> Result<(), Vec<MemoryError>> {
        self.host
            .update_memory(&GuestMemoryMmap::new(), removed, added)
    }

    fn is_reached(&self, requester: Requester, iova: u64, length: u64, offset: u64) -> bool {
        let table = self.page_table(requester);
        table.is_some_and(|table| self.kernel.maps(table, iova, length, self.ram.at(offset)))
    }

    fn is_out_of_reach(&self, requester: Requester, iova: u64, length: u64, offset: u64) -> bool {
        let address = self.ram.at(offset);
        let table = self.page_table(requester);
        table.is_none_or(|table| self.kernel.maps_none(table, iova, length, address))
    }

    /// Mock page tables have no protection. Their address space has.
    fn allows(&self, domain: &Domain, _: Requester, iova: u64) -> (bool, bool) {
        let access = self.kernel.access(self.address_spaces.borrow()[&domain.id]);
        let mut data = [0; 16];
        (access.read(iova, &mut data), access.write(iova, &mut data))
    }

    fn domain(&self, id: u32) -> Domain {
        let domain = Domain::new(id);
        let table = domain.table.clone();
        let make = || {
            self.host
                .create_domain(domain.id, Translations::Mappings(table))
        };
        let (made, ioas) = self.new_ioas(make);
        made.unwrap();
        self.address_spaces.borrow_mut().insert(domain.id, ioas);
        domain
    }

    fn raise(&self, requester: Requester, access: EventFlags, iova: u64) {
        let device = self.devices.borrow()[&requester.endpoint];
        let pasid = requester.pasid.map_or(0, |pasid| pasid.0);
        // READ and WRITE are the same bits there. Hardware repeats its group indices.
        self.kernel
            .page_request(device, pasid, 7, access.bits(), iova);
    }
}

mod held {
    crate::cases::held_to_the_contract!(crate::contract::Bench);
}
