// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Bytes per live mapping: growth of the resident size of a process that holds a million.

use std::hint::black_box;
use std::process::Command;

use vhost_device_iommu::host::mapping::{IovaRange, Mapping, MappingTable};
use vhost_device_iommu::spec::{Gpa, MapFlags};

use super::Figure;
use super::tree_table::TreeTable;

/// Names the variable that makes this program the one that is measured.
pub const CHILD: &str = "LAB_BENCH_MEMORY";

const COUNT: u64 = 1 << 20;
const PAGE: u64 = 4096;

pub fn figures() -> Vec<Figure> {
    ["ascending", "scattered"]
        .map(|order| {
            let ours = measure(&format!("table-{order}"));
            let tree = measure(&format!("tree-{order}"));
            Figure {
                what: format!("bytes per mapping, {COUNT} {order}"),
                ours: format!("{ours:.1} B"),
                beside: Some((format!("`BTreeMap` {tree:.1} B"), ours / tree)),
                goal: "<= 34 B",
                met: ours <= 34.0,
            }
        })
        .into()
}

/// Each in a process of its own: what one has freed must not serve the next.
fn measure(part: &str) -> f64 {
    let program = std::env::current_exe().expect("this program");
    let output = Command::new(program)
        .env(CHILD, part)
        .output()
        .expect("a child");
    let text = String::from_utf8_lossy(&output.stdout);
    text.trim().parse().expect("a number")
}

/// Prints the bytes per mapping.
pub fn child(part: &str) {
    let (kind, order) = part.split_once('-').expect("KIND-ORDER");
    let iova = |index: u64| match order {
        "ascending" => index * PAGE,
        // An odd factor permutes the indices of a power of two.
        _ => index.wrapping_mul(0x9e37_79b9_7f4a_7c15) % COUNT * PAGE,
    };
    let mappings = (0..COUNT).map(|index| {
        let first = iova(index);
        Mapping {
            range: IovaRange::new(first, first + PAGE - 1).expect("a range"),
            gpa: Gpa(first),
            flags: MapFlags::READ,
        }
    });
    let before = resident();
    let after = match kind {
        "table" => {
            let mut table = MappingTable::new();
            mappings.for_each(|mapping| table.insert(&mapping).expect("no overlap"));
            let after = resident();
            black_box(&table);
            after
        }
        _ => {
            let mut table = TreeTable::new();
            mappings.for_each(|mapping| table.insert(&mapping).expect("no overlap"));
            let after = resident();
            black_box(&table);
            after
        }
    };
    println!("{}", (after - before) as f64 / COUNT as f64);
}

/// Resident bytes of this process.
fn resident() -> u64 {
    let text = std::fs::read_to_string("/proc/self/statm").expect("/proc");
    let pages: u64 = text
        .split(' ')
        .nth(1)
        .expect("a field")
        .parse()
        .expect("a number");
    pages * 4096
}
