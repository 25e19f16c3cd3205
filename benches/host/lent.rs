// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Bypass of a device that a virtual machine monitor shares: the monitor's own page table of guest memory, beside another
//! one that the kernel fills when a device is attached to the monitor's address space.

use std::sync::Arc;
use std::time::Instant;

use vhost_device_iommu::host::iommufd::{EndpointSource, IommufdHost};
use vhost_device_iommu::host::{Attachment, Host, MemoryRegion, Requester};
use vhost_device_iommu::spec::{EndpointId, Gpa};

use crate::common::ram;
use crate::cost::{pinned_bytes, table_bytes};
use crate::kernel::{APERTURE_FIRST, Kernel, MockDevice};
use crate::{Figure, compare, median};

const GIB: u64 = 1 << 30;
const ROUNDS: usize = 7;
const ENDPOINT: EndpointId = EndpointId(1);

/// What the kernel holds for devices.
#[derive(Clone, Copy)]
struct Memory {
    pinned: u64,
    tables: u64,
}

impl Memory {
    fn now() -> Self {
        Self {
            pinned: pinned_bytes(),
            tables: table_bytes(),
        }
    }

    fn since(self, before: Self) -> Self {
        Self {
            pinned: self.pinned - before.pinned,
            tables: self.tables - before.tables,
        }
    }
}

pub fn figures() -> Vec<Figure> {
    let before = Memory::now();
    let kernel = Kernel::open();
    let region = MemoryRegion {
        gpa: Gpa(APERTURE_FIRST),
        length: GIB,
        user_address: 0,
        file: Some((Arc::new(ram::memfd(GIB)), 0)),
    };
    let monitors = kernel.nursery;
    let mut device = kernel.mock_device();
    kernel.map_file(monitors, &region);
    let table = kernel.new_page_table(device.dev, monitors, 0);
    kernel.attach(device, table);
    let alone = Memory::now().since(before);

    let (mut builds, mut take_overs, mut moves) = (Vec::new(), Vec::new(), Vec::new());
    let mut held = alone;
    for _ in 0..ROUNDS {
        builds.push(time(|| kernel.attach(device, monitors)));
        kernel.attach(device, table);

        let host = IommufdHost::new(kernel.descriptor()).expect("a host");
        take_overs.push(time(|| take_over(&host, device)));
        assert_eq!(kernel.page_table(device), table);
        held = Memory::now().since(before);
        attach(&host, Attachment::Blocked);
        moves.push(time(|| attach(&host, Attachment::Bypass)));
        assert_eq!(kernel.page_table(device), table);
        // A mock device that is let go of ends.
        drop(host);
        device = kernel.mock_device();
        kernel.attach(device, table);
    }
    let build = median(builds);
    let beside = ("a page table by the address space", build);
    vec![
        compare(
            "take-over of a lent device, 1 GiB",
            median(take_overs),
            beside,
            0.15,
            "at most 0.15",
        ),
        compare(
            "move of a lent device into bypass, 1 GiB",
            median(moves),
            beside,
            0.15,
            "at most 0.15",
        ),
        more(
            "memory pinned after the take-over",
            held.pinned,
            alone.pinned,
        ),
        more("page tables after the take-over", held.tables, alone.tables),
    ]
}

/// Bytes beside those of the monitor alone.
fn more(what: &str, ours: u64, alone: u64) -> Figure {
    let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    let ratio = ours as f64 / alone as f64;
    Figure {
        what: what.into(),
        ours: format!("{:.1} MiB", mib(ours)),
        beside: Some((format!("the monitor alone {:.1} MiB", mib(alone)), ratio)),
        goal: "at most 1.05",
        // What is beyond 1 are our own page tables, which are empty. The kernel counts per processor and adds up now and then.
        met: ratio <= 1.05,
    }
}

fn take_over(host: &IommufdHost, device: MockDevice) {
    let source = EndpointSource::LentMock {
        stdev_id: device.stdev,
    };
    host.add_endpoint(ENDPOINT, source, Some(device.dev))
        .expect("an endpoint");
    attach(host, Attachment::Bypass);
}

fn attach(host: &IommufdHost, to: Attachment) {
    let requester = Requester {
        endpoint: ENDPOINT,
        pasid: None,
    };
    host.attach(requester, to).expect("an attachment");
}

/// Microseconds.
fn time(action: impl FnOnce()) -> f64 {
    let start = Instant::now();
    action();
    start.elapsed().as_secs_f64() * 1e6
}
