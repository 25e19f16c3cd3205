// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The software PCI function: a COPY of its test registers, from the write to COMMAND to the end in STATUS.

use std::hint::spin_loop;
use std::sync::{Arc, RwLock};
use std::time::Instant;

use vhost_device_iommu::host::mapping::{IovaRange, Mapping, MappingTable};
use vhost_device_iommu::host::soft::{SoftHost, default_properties};
use vhost_device_iommu::host::{Attachment, Host, PageRequests, Requester, Translations};
use vhost_device_iommu::soft_endpoint::{PciFunction, Region};
use vhost_device_iommu::spec::{DomainId, EndpointId, Gpa, MapFlags};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};

use super::{Figure, median};

const PAGE: u64 = 4096;
const LENGTH: u64 = 1 << 20;
/// Pairs of buffers that are copied in turn: what a driver hands to a device is not in the caches of this process.
const BUFFERS: u64 = 64;
const PAGES: u64 = 2 * BUFFERS * LENGTH / PAGE;
const DOMAIN: DomainId = DomainId(1);
const REQUESTER: Requester = Requester {
    endpoint: EndpointId(0x28),
    pasid: None,
};

/// Registers of BAR 0, and what is written to them.
const STATUS: u64 = 0x08;
const SOURCE: u64 = 0x0c;
const DESTINATION: u64 = 0x14;
const SIZE: u64 = 0x1c;
const COMMAND: u64 = 0x04;
const COPY: u64 = 1 << 5;
const COPY_SUCCESS: u32 = 1 << 4;
const IRQ_RAISED: u32 = 1 << 6;

pub fn figures() -> Vec<Figure> {
    let iommu = Iommu::new();
    vec![iommu.copy()]
}

/// Where a page of the mapped range goes: the steps of a prime meet every page once.
fn page_of(index: u64) -> u64 {
    index * 7_368_787 % PAGES * PAGE
}

struct Iommu {
    host: Arc<SoftHost>,
    memory: GuestMemoryMmap,
}

impl Iommu {
    /// 4 KiB mappings to pages all over memory.
    fn new() -> Self {
        let ranges = [(GuestAddress(0), (PAGES * PAGE) as usize)];
        let memory = GuestMemoryMmap::from_ranges(&ranges).expect("memory");
        let mut table = MappingTable::new();
        for index in 0..PAGES {
            let first = index * PAGE;
            let mapping = Mapping {
                range: IovaRange::new(first, first + PAGE - 1).expect("range"),
                gpa: Gpa(page_of(index)),
                flags: MapFlags::READ | MapFlags::WRITE,
            };
            table.insert(&mapping).expect("no overlap");
            let fill = [index as u8; PAGE as usize];
            memory
                .write_slice(&fill, GuestAddress(first))
                .expect("memory");
        }
        let host = Arc::new(SoftHost::new().expect("host"));
        host.add_endpoint(REQUESTER.endpoint, default_properties())
            .expect("endpoint");
        host.update_memory(&memory, &[], &[]).expect("memory");
        host.create_domain(DOMAIN, Translations::Mappings(Arc::new(RwLock::new(table))))
            .expect("domain");
        let to = Attachment::Domain {
            domain: DOMAIN,
            page_requests: PageRequests::Unwanted,
        };
        host.attach(REQUESTER, to).expect("attach");
        Self { host, memory }
    }

    fn copy(&self) -> Figure {
        let device = PciFunction::new(REQUESTER.endpoint, &self.host).expect("device");
        device
            .write(Region::Config, 4, &[6, 0])
            .expect("memory and bus mastering");
        let mut buffer = 0;
        let ours = microseconds(|| {
            let from = buffer % BUFFERS * 2 * LENGTH;
            buffer += 1;
            for (register, value) in [
                (STATUS, 0),
                (SOURCE, from),
                (DESTINATION, from + LENGTH),
                (SIZE, LENGTH),
                (COMMAND, COPY),
            ] {
                let bytes = (value as u32).to_le_bytes();
                device
                    .write(Region::Bar(0), register, &bytes)
                    .expect("write");
            }
            let mut status = [0; 4];
            while u32::from_le_bytes(status) & IRQ_RAISED == 0 {
                spin_loop();
                device
                    .read(Region::Bar(0), STATUS, &mut status)
                    .expect("read");
            }
            assert_eq!(u32::from_le_bytes(status), COPY_SUCCESS | IRQ_RAISED);
        });
        let page = |index: u64| {
            let at = GuestAddress(page_of(index));
            self.memory.get_slice(at, PAGE as usize).expect("a page")
        };
        let plain = microseconds(|| {
            let first = buffer % BUFFERS * 2 * LENGTH / PAGE;
            buffer += 1;
            for index in first..first + LENGTH / PAGE {
                page(index).copy_to_volatile_slice(page(index + LENGTH / PAGE));
            }
        });
        Figure {
            what: "COPY of 1 MiB through 4 KiB mappings".to_owned(),
            ours: format!("{ours:.0} us"),
            beside: Some((
                format!("memcpy of the same pages {plain:.0} us"),
                plain / ours,
            )),
            goal: ">= 0.5 of the speed",
            met: plain / ours >= 0.5,
        }
    }
}

/// How long it takes: the median of some runs.
fn microseconds(mut work: impl FnMut()) -> f64 {
    let runs = (0..101).map(|_| {
        let begin = Instant::now();
        work();
        begin.elapsed().as_secs_f64() * 1e6
    });
    median(runs.collect())
}
