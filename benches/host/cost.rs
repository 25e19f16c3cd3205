// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a request costs the kernel: calls, and pinned memory.

use std::fs;
use std::sync::Arc;

use vhost_device_iommu::host::{MemoryRegion, iommufd};
use vhost_device_iommu::spec::Gpa;

use crate::Figure;
use crate::common::ram;
use crate::common::requests::{self, READ, WRITE};
use crate::kernel::Kernel;
use crate::setup::{Setup, execute};

const PAGE: u64 = 4096;
const IOVA: u64 = 0x4000_0000;
const MIB: u64 = 1 << 20;

/// Requests of a batch.
const BATCH: u64 = 256;

/// The buffers that several domains map.
const BUFFERS: u64 = 64 * MIB;
const DOMAINS: [u32; 3] = [1, 4, 16];

pub fn figures() -> Vec<Figure> {
    let mut figures = calls();
    figures.extend(DOMAINS.map(pinned));
    figures
}

/// Kernel calls of a batch of MAPs, and of the UNMAPs of the same.
fn calls() -> Vec<Figure> {
    let setup = Setup::new(1, 16 * MIB);
    execute(&setup.device, &[requests::attach(1, 1, 0)]);
    let first = |page| IOVA + page * PAGE;
    let maps: Vec<_> = (0..BATCH)
        .map(|page| {
            let last = first(page) + PAGE - 1;
            requests::map(1, first(page), last, page * PAGE, READ | WRITE)
        })
        .collect();
    let unmaps: Vec<_> = (0..BATCH)
        .map(|page| requests::unmap(1, first(page), first(page) + PAGE - 1))
        .collect();
    [
        ("MAP", maps, 1.0, "1"),
        (
            "UNMAP of adjacent mappings",
            unmaps,
            1.0 / BATCH as f64,
            "1 a batch",
        ),
    ]
    .into_iter()
    .map(|(what, batch, most, goal)| {
        let before = iommufd::kernel_calls();
        execute(&setup.device, &batch);
        let calls = (iommufd::kernel_calls() - before) as f64;
        let each = calls / BATCH as f64;
        Figure {
            what: format!("kernel calls per {what}, batches of {BATCH}"),
            ours: format!("{each:.3}"),
            beside: Some(("one call each".into(), each)),
            goal,
            met: each <= most,
        }
    })
    .collect()
}

/// Memory pinned when so many domains map the same buffers, beside as many address spaces that map the file each.
fn pinned(domains: u32) -> Figure {
    let setup = Setup::new(domains, BUFFERS);
    let requests: Vec<_> = (1..=domains)
        .flat_map(|id| {
            [
                requests::attach(id, id, 0),
                requests::map(id, IOVA, IOVA + BUFFERS - 1, 0, READ | WRITE),
            ]
        })
        .collect();
    let before = pinned_bytes();
    execute(&setup.device, &requests);
    let ours = (pinned_bytes() - before) as f64;
    drop(setup);

    let before = pinned_bytes();
    let separate = separate(domains);
    let theirs = (pinned_bytes() - before) as f64;
    drop(separate);
    let buffers = BUFFERS as f64;
    Figure {
        what: format!(
            "memory pinned, {domains} domain{} over the same buffers",
            plural(domains)
        ),
        ours: format!("{:.2} x the buffers", ours / buffers),
        beside: Some((
            format!("IOMMU_IOAS_MAP_FILE in each {:.2} x", theirs / buffers),
            ours / theirs,
        )),
        goal: "1 x the buffers",
        // The kernel counts per processor and adds up now and then.
        met: ours <= 1.01 * buffers,
    }
}

fn plural(count: u32) -> &'static str {
    if count == 1 { "" } else { "s" }
}

/// Bytes that the kernel's drivers have pinned, each as often as it is pinned.
pub fn pinned_bytes() -> u64 {
    (vmstat("nr_foll_pin_acquired") - vmstat("nr_foll_pin_released")) * PAGE
}

/// Bytes of the page tables of all IOMMUs.
pub fn table_bytes() -> u64 {
    vmstat("nr_iommu_pages") * PAGE
}

fn vmstat(name: &str) -> u64 {
    let vmstat = fs::read_to_string("/proc/vmstat").expect("/proc/vmstat");
    let value = |line: &str| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok();
    let found = vmstat.lines().find_map(value);
    found.unwrap_or_else(|| panic!("/proc/vmstat has no {name}"))
}

/// Contexts with an address space and a mock device each, that all map the same file.
fn separate(count: u32) -> Vec<Kernel> {
    let region = MemoryRegion {
        gpa: Gpa(IOVA),
        length: BUFFERS,
        user_address: 0,
        file: Some((Arc::new(ram::memfd(BUFFERS)), 0)),
    };
    (0..count)
        .map(|_| {
            let kernel = Kernel::open();
            kernel.mock_device();
            kernel.map_file(kernel.nursery, &region);
            kernel
        })
        .collect()
}
