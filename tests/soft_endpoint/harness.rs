// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A function, its IOMMU and guest memory, and the driver's view of them.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::sync::{Arc, RwLock, Weak};

use vfio_user::Client;
use vhost_device_iommu::host::mapping::{IovaRange, Mapping, MappingTable, SharedMappings};
use vhost_device_iommu::host::soft::{SoftHost, default_properties};
use vhost_device_iommu::host::{
    Attachment, Host, HostEvent, PageRequestGroup, PageRequests, Requester, Translations,
};
use vhost_device_iommu::soft_endpoint::SoftEndpoint;
use vhost_device_iommu::spec::{DomainId, EndpointId, Gpa, Iova, MapFlags};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::common::wait_until;

pub const ENDPOINT: EndpointId = EndpointId(0x28);
const DOMAIN: DomainId = DomainId(1);
const RAM: u64 = 8 << 20;

/// Regions, as of vfio-pci.
pub const CONFIG: u32 = 7;
/// Interrupts, as of vfio-pci.
pub const INTX: u32 = 0;
pub const MSI: u32 = 1;
pub const MSIX: u32 = 2;

/// Flags of SET_IRQS.
pub const DATA_NONE: u32 = 1;
pub const DATA_EVENTFD: u32 = 4;
pub const UNMASK: u32 = 1 << 4;
pub const TRIGGER: u32 = 1 << 5;

/// Registers of configuration space.
pub const COMMAND: u64 = 0x04;
pub const MSIX_CONTROL: u64 = 0x6a;
pub const ATS_CONTROL: u64 = 0x106;
pub const PRI_CONTROL: u64 = 0x114;
pub const PRI_ALLOCATION: u64 = 0x11c;
pub const MEMORY_AND_MASTER: u16 = 0x6;

/// Registers of BAR 0.
pub mod reg {
    pub const COMMAND: u64 = 0x04;
    pub const STATUS: u64 = 0x08;
    pub const SOURCE: u64 = 0x0c;
    pub const DESTINATION: u64 = 0x14;
    pub const SIZE: u64 = 0x1c;
    pub const CHECKSUM: u64 = 0x20;
    pub const IRQ_TYPE: u64 = 0x24;
    pub const IRQ_NUMBER: u64 = 0x28;
}

/// Commands of BAR 0.
pub mod command {
    pub const RAISE_INTX: u32 = 1 << 0;
    pub const RAISE_MSI: u32 = 1 << 1;
    pub const RAISE_MSIX: u32 = 1 << 2;
    pub const READ: u32 = 1 << 3;
    pub const WRITE: u32 = 1 << 4;
    pub const COPY: u32 = 1 << 5;
}

/// Status of BAR 0.
pub mod status {
    pub const READ_SUCCESS: u32 = 1 << 0;
    pub const READ_FAIL: u32 = 1 << 1;
    pub const WRITE_SUCCESS: u32 = 1 << 2;
    pub const WRITE_FAIL: u32 = 1 << 3;
    pub const COPY_SUCCESS: u32 = 1 << 4;
    pub const COPY_FAIL: u32 = 1 << 5;
    pub const IRQ_RAISED: u32 = 1 << 6;
    pub const SRC_ADDR_INVALID: u32 = 1 << 7;
    pub const DST_ADDR_INVALID: u32 = 1 << 8;
}

/// The function behind its IOMMU.
pub struct Fixture {
    pub host: Arc<SoftHost>,
    pub memory: GuestMemoryMmap,
    pub table: SharedMappings,
    pub endpoint: Option<Arc<SoftEndpoint>>,
    pub path: PathBuf,
    _directory: tempfile::TempDir,
}

impl Fixture {
    /// Memory whose pages are full of their number, and a function that is attached to an empty domain.
    pub fn new() -> Self {
        let host = Arc::new(SoftHost::new().expect("host"));
        host.add_endpoint(ENDPOINT, default_properties())
            .expect("endpoint");
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), RAM as usize)]).expect("RAM");
        for page in 0..RAM >> 12 {
            let fill = [page as u8; 4096];
            memory
                .write_slice(&fill, GuestAddress(page << 12))
                .expect("RAM");
        }
        host.update_memory(&memory, &[], &[]).expect("memory");
        let table: SharedMappings = Arc::new(RwLock::new(MappingTable::default()));
        host.create_domain(DOMAIN, Translations::Mappings(Arc::clone(&table)))
            .expect("domain");
        let directory = tempfile::tempdir().expect("directory");
        let path = directory.path().join("pci");
        let endpoint = SoftEndpoint::start(ENDPOINT, &host, &path, None).expect("start");
        let fixture = Self {
            host,
            memory,
            table,
            endpoint: Some(Arc::new(endpoint)),
            path,
            _directory: directory,
        };
        fixture.attach(PageRequests::Unwanted);
        fixture
    }

    pub fn attach(&self, page_requests: PageRequests) {
        let requester = Requester {
            endpoint: ENDPOINT,
            pasid: None,
        };
        let to = Attachment::Domain {
            domain: DOMAIN,
            page_requests,
        };
        self.host.attach(requester, to).expect("attach");
    }

    pub fn map(&self, iova: u64, length: u64, gpa: u64, flags: MapFlags) {
        let mapping = Mapping {
            range: IovaRange::new(iova, iova + length - 1).expect("range"),
            gpa: Gpa(gpa),
            flags,
        };
        self.table
            .write()
            .expect("table")
            .insert(&mapping)
            .expect("map");
    }

    /// Takes mappings out of the table, as the first step of an UNMAP does.
    pub fn forget(&self, iova: u64, length: u64) {
        let range = IovaRange::new(iova, iova + length - 1).expect("range");
        let mut table = self.table.write().expect("table");
        table.remove(&range, |_| ()).expect("no split");
    }

    pub fn driver(&self) -> Driver {
        let client = Client::new(&self.path).expect("connect");
        let endpoint = self.endpoint.as_ref().map(Arc::downgrade);
        let mut driver = Driver(client, endpoint.expect("a function"));
        driver.write_config(COMMAND, MEMORY_AND_MASTER);
        driver
    }

    /// Waits for a group of page requests.
    pub fn group(&self) -> PageRequestGroup {
        let mut found = None;
        wait_until("a page request", || {
            self.host.take_events(&mut |event| match event {
                HostEvent::PageRequest(group) => found = Some(group),
                other => panic!("unexpected {other:?}"),
            });
            found.is_some()
        });
        found.expect("a group")
    }

    pub fn faults(&self) -> Vec<Iova> {
        let mut faults = Vec::new();
        self.host.take_events(&mut |event| match event {
            HostEvent::Fault(fault) => faults.push(fault.address.expect("address")),
            other => panic!("unexpected {other:?}"),
        });
        faults
    }

    pub fn bytes(&self, gpa: u64, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        self.memory
            .read_slice(&mut bytes, GuestAddress(gpa))
            .expect("RAM");
        bytes
    }
}

/// A driver, with QEMU in between, and the function that it drives.
pub struct Driver(pub Client, Weak<SoftEndpoint>);

impl Driver {
    pub fn read32(&mut self, bar: u32, offset: u64) -> u32 {
        let mut bytes = [0; 4];
        self.0.region_read(bar, offset, &mut bytes).expect("read");
        u32::from_le_bytes(bytes)
    }

    pub fn write32(&mut self, bar: u32, offset: u64, value: u32) {
        let bytes = value.to_le_bytes();
        self.0.region_write(bar, offset, &bytes).expect("write");
    }

    pub fn read_config(&mut self, offset: u64) -> u16 {
        let mut bytes = [0; 2];
        self.0
            .region_read(CONFIG, offset, &mut bytes)
            .expect("read");
        u16::from_le_bytes(bytes)
    }

    pub fn write_config(&mut self, offset: u64, value: u16) {
        let bytes = value.to_le_bytes();
        self.0.region_write(CONFIG, offset, &bytes).expect("write");
    }

    pub fn write_config32(&mut self, offset: u64, value: u32) {
        self.write32(CONFIG, offset, value);
    }

    /// Enables PRI and ATS, as the IOMMU's driver does for an endpoint with page requests.
    pub fn enable_page_requests(&mut self) {
        self.write_config32(PRI_ALLOCATION, 32);
        self.write_config(PRI_CONTROL, 1);
        self.write_config(ATS_CONTROL, 1 << 15);
    }

    /// Starts a transfer.
    pub fn start(&mut self, command: u32, source: u64, destination: u64, size: u32) {
        self.write32(0, reg::STATUS, 0);
        for (register, address) in [(reg::SOURCE, source), (reg::DESTINATION, destination)] {
            self.write32(0, register, address as u32);
            self.write32(0, register + 4, (address >> 32) as u32);
        }
        self.write32(0, reg::SIZE, size);
        self.write32(0, reg::COMMAND, command);
    }

    /// Waits for the end of a command and of its interrupt: its status, without IRQ_RAISED, which says that it has ended.
    pub fn finish(&mut self) -> u32 {
        let mut found = 0;
        wait_until("the end of a command", || {
            found = self.read32(0, reg::STATUS);
            found & status::IRQ_RAISED != 0
        });
        let function = self.1.upgrade().expect("a function");
        wait_until("the end of its interrupt", || {
            function.describe()["bars"]["0"]["busy"] == false
        });
        found & !status::IRQ_RAISED
    }

    pub fn run(&mut self, command: u32, source: u64, destination: u64, size: u32) -> u32 {
        self.start(command, source, destination, size);
        self.finish()
    }

    /// Gives descriptors to the first vectors of a kind.
    pub fn set_triggers(&mut self, index: u32, count: usize) -> Vec<EventFd> {
        let events: Vec<EventFd> = (0..count)
            .map(|_| EventFd::new(EFD_NONBLOCK).expect("eventfd"))
            .collect();
        // As QEMU does it, with as many descriptors as the library takes.
        for (first, event) in events.iter().enumerate() {
            let flags = TRIGGER | DATA_EVENTFD;
            let set = self
                .0
                .set_irqs(index, flags, first as u32, 1, &[event.as_raw_fd()]);
            set.expect("set");
        }
        events
    }
}

/// How often each of the events was signalled since the last look.
pub fn signals(events: &[EventFd]) -> Vec<u64> {
    events.iter().map(|e| e.read().unwrap_or(0)).collect()
}

/// A memory file, as a front-end shares guest memory.
pub fn memory_file() -> File {
    tempfile::tempfile().expect("a file")
}
