// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The software host on the bench. Accesses that neither wait nor report find out what endpoints reach.

use std::cell::{Cell, RefCell};

use vhost_device_iommu::host::soft::{
    Access, PendingResponse, SoftHost, Transfer, default_properties,
};
use vhost_device_iommu::host::{Host, MemoryError, MemoryRegion, PageRequest, Requester};
use vhost_device_iommu::spec::{EndpointId, EventFlags, Iova};
use vm_memory::mmap::MmapRegion;
use vm_memory::{FileOffset, GuestAddress, GuestMemoryMmap, GuestRegionMmap};

use crate::cases::{Bench, Domain, Ram};

/// A software host and guest memory.
pub struct SoftBench {
    host: SoftHost,
    ram: Ram,
    regions: RefCell<Vec<MemoryRegion>>,
    /// Endpoints wait for the answers to their page requests.
    waiting: RefCell<Vec<PendingResponse>>,
    mark: Cell<u64>,
}

impl SoftBench {
    /// Reads or writes as an endpoint does; whether that was allowed.
    fn access(&self, requester: Requester, iova: u64, mut transfer: Transfer<'_>) -> bool {
        let kinds = match transfer {
            Transfer::Read(_) => EventFlags::READ,
            Transfer::Write(_) => EventFlags::WRITE,
        };
        let access = Access {
            pasid: requester.pasid,
            kinds,
            translated: false,
        };
        let port = self.host.port(requester.endpoint);
        port.is_ok_and(|port| port.transfer(access, Iova(iova), &mut transfer, 0).is_ok())
    }

    /// Whether what is new at a place in memory is what an endpoint reads, and the reverse.
    fn is_page_reached(&self, requester: Requester, iova: u64, offset: u64) -> bool {
        let [ours, theirs] = [1, 2].map(|next| (self.mark.get() + next).to_le_bytes());
        self.mark.set(self.mark.get() + 2);
        self.ram.write(offset, &ours);
        let mut seen = [0; 8];
        if !self.access(requester, iova, Transfer::Read(&mut seen)) || seen != ours {
            return false;
        }
        let written = self.access(requester, iova, Transfer::Write(&theirs));
        self.ram.read(offset, &mut seen);
        written && seen == theirs
    }
}

impl Bench for SoftBench {
    fn new() -> Self {
        Self {
            host: SoftHost::new().unwrap(),
            ram: Ram::new(crate::cases::RAM),
            regions: RefCell::default(),
            waiting: RefCell::default(),
            mark: Cell::default(),
        }
    }

    fn host(&self) -> &dyn Host {
        &self.host
    }

    fn ram(&self) -> &Ram {
        &self.ram
    }

    fn add_endpoint(&self, id: u32) {
        self.host
            .add_endpoint(EndpointId(id), default_properties())
            .unwrap();
    }

    fn update_memory(
        &self,
        removed: &[MemoryRegion],
        added: &[MemoryRegion],
    ) -> Result<(), Vec<MemoryError>> {
        let mut regions = self.regions.borrow_mut();
        regions.retain(|region| !removed.iter().any(|gone| gone.gpa == region.gpa));
        regions.extend_from_slice(added);
        regions.sort_by_key(|region| region.gpa);
        let mapped = regions.iter().map(|region| {
            let (file, offset) = region.file.as_ref().unwrap();
            let file = FileOffset::from_arc(file.clone(), *offset);
            let mapped = MmapRegion::from_file(file, region.length as usize).unwrap();
            GuestRegionMmap::new(mapped, GuestAddress(region.gpa.0)).unwrap()
        });
        let memory = GuestMemoryMmap::from_regions(mapped.collect()).unwrap();
        self.host.update_memory(&memory, removed, added)
    }

    fn is_reached(&self, requester: Requester, iova: u64, length: u64, offset: u64) -> bool {
        (0..length)
            .step_by(4096)
            .all(|at| self.is_page_reached(requester, iova + at, offset + at))
    }

    fn is_out_of_reach(&self, requester: Requester, iova: u64, length: u64, offset: u64) -> bool {
        (0..length)
            .step_by(4096)
            .all(|at| !self.is_page_reached(requester, iova + at, offset + at))
    }

    fn allows(&self, _: &Domain, requester: Requester, iova: u64) -> (bool, bool) {
        let mut byte = [0];
        let reads = self.access(requester, iova, Transfer::Read(&mut byte));
        (reads, self.access(requester, iova, Transfer::Write(&byte)))
    }

    fn raise(&self, requester: Requester, access: EventFlags, iova: u64) {
        let page = PageRequest {
            address: Iova(iova),
            access,
            length: 0,
        };
        let port = self.host.port(requester.endpoint).unwrap();
        let waiting = port.page_request(requester.pasid, vec![page]).unwrap();
        self.waiting.borrow_mut().push(waiting);
    }
}
