// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Batches of MAP and UNMAP through the worker, with a driver that watches the used index.
//!
//! The driver prepares one batch while the device carries the other out, as a driver that queues without waiting
//! does: half of a batch are MAPs between the live mappings, the other half UNMAPs them.

use std::collections::BTreeMap;
use std::hint::{black_box, spin_loop};
use std::time::Instant;

use vhost_device_iommu::device::DeviceConfig;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, VolatileSlice};

use super::common::guest::{Guest, GuestOptions, REQUESTS};
use super::common::{Layout, Segment, Server, ServerOptions, requests};
use super::{Figure, median, pin};

const PAGE: u64 = 4096;
const QUEUE: u16 = 1024;
/// Room for a request's readable part; its tail has a slot of its own.
const SLOT: u64 = 64;

pub fn figures() -> Vec<Figure> {
    let mut figures = Vec::new();
    for (live, goal, wanted) in [(1000, ">= 3 M/s", 3e6), (1_000_000, ">= 2 M/s", 2e6)] {
        let bare = bare_tree(live);
        for batch in [256, 512] {
            let rate = rate(live, batch);
            figures.push(Figure {
                what: format!("requests a second, batches of {batch}, {live} live mappings"),
                ours: format!("{:.2} M/s", rate / 1e6),
                beside: Some((
                    format!("bare `BTreeMap`, same keys {:.2} M/s", bare / 1e6),
                    rate / bare,
                )),
                goal,
                met: rate >= wanted,
            });
        }
    }
    figures
}

/// An address between the live mappings; a new one for each index.
fn between(index: u64, live: u64) -> u64 {
    // Primes: the steps meet every place before they meet one again.
    (index.wrapping_mul(7_368_787) % live) * 2 * PAGE + PAGE
}

/// The request slots of one batch, prepared in place.
struct Slots<'a> {
    slices: Vec<VolatileSlice<'a>>,
}

impl Slots<'_> {
    /// MAPs first, then the UNMAPs of the same pages. The rest of each request never changes.
    fn prepare(&self, index: &mut u64, live: u64) {
        let half = self.slices.len() / 2;
        for position in 0..half {
            *index += 1;
            let first = between(*index, live);
            for slice in [&self.slices[position], &self.slices[half + position]] {
                slice.write_obj(first.to_le(), 8).expect("virt_start");
                slice
                    .write_obj((first + PAGE - 1).to_le(), 16)
                    .expect("virt_end");
            }
        }
    }
}

/// MAP and UNMAP requests a second: the median of some runs.
fn rate(live: u64, batch: usize) -> f64 {
    let server = pin::device_side(|| {
        Server::start(ServerOptions {
            config: DeviceConfig {
                max_mappings: 2 << 20,
                ..DeviceConfig::default()
            },
            ..ServerOptions::default()
        })
    });
    let options = GuestOptions {
        queue_size: QUEUE,
        layout: Layout::Indirect,
        ram: vec![(0x1_0000, 64 << 20)],
        ..GuestOptions::default()
    };
    let mut guest = Guest::connect(&server.path, &options);
    assert_eq!(guest.request(&requests::attach(1, 8, 0)), 0);
    // Scattered: every other page, in an order that jumps.
    for chunk in (0..live).collect::<Vec<_>>().chunks(512) {
        let maps: Vec<_> = chunk
            .iter()
            .map(|index| index.wrapping_mul(7_368_787) % live * 2 * PAGE)
            .map(|first| requests::map(1, first, first + PAGE - 1, 0x10_0000, 3))
            .collect();
        assert!(guest.batch(&maps).iter().all(|&status| status == 0));
    }

    let slots = guest.ram.allocate(2 * SLOT * batch as u64);
    let tails = guest.ram.allocate(2 * 4 * batch as u64);
    let map = guest.ram.map.clone();
    let slice = |address: u64| {
        map.get_slice(GuestAddress(address), SLOT as usize)
            .expect("a slot")
    };
    // Heads for both halves: made once, made available again and again.
    let mut heads = Vec::new();
    for position in 0..2 * batch {
        let in_batch = position % batch;
        let request = if in_batch < batch / 2 {
            requests::map(1, PAGE, 2 * PAGE - 1, 0x10_0000, 3)
        } else {
            requests::unmap(1, PAGE, 2 * PAGE - 1)
        };
        let at = slots + SLOT * position as u64;
        guest.ram.write(at, &request);
        let segments = [
            Segment::readable(at, request.len()),
            Segment::writable(tails + 4 * position as u64, 4),
        ];
        let queue = &mut guest.queues[REQUESTS];
        heads.push(queue.push(&segments, Layout::Indirect));
        // Not now.
        queue.available_index = queue.available_index.wrapping_sub(1);
    }
    let halves: Vec<Slots<'_>> = (0..2)
        .map(|half| Slots {
            slices: (0..batch)
                .map(|position| slice(slots + SLOT * (half * batch + position) as u64))
                .collect(),
        })
        .collect();

    let mut index = 0;
    let rates = (0..7)
        .map(|_| {
            let rounds = (400_000 / batch).max(2);
            let begin = Instant::now();
            for round in 0..rounds {
                let half = round % 2;
                // The other half is being carried out meanwhile.
                halves[half].prepare(&mut index, live);
                let queue = &mut guest.queues[REQUESTS];
                for &head in &heads[half * batch..][..batch] {
                    queue.make_available(head);
                }
                wait_for(queue, queue.available_index.wrapping_sub(batch as u16));
                queue.submit();
            }
            let queue = &guest.queues[REQUESTS];
            wait_for(queue, queue.available_index);
            (rounds * batch) as f64 / begin.elapsed().as_secs_f64()
        })
        .collect();
    guest.queues[REQUESTS].used_seen = guest.queues[REQUESTS].available_index;
    // Every tail says OK, so every request was carried out.
    for position in 0..2 * batch as u64 {
        let status: [u8; 4] = guest.ram.read(tails + 4 * position);
        assert_eq!(status, [0; 4]);
    }
    assert_eq!(server.device.counters().requests_failed.get(), 0);
    median(rates)
}

fn wait_for(queue: &super::common::VirtQueue, used: u16) {
    while queue.used_index() != used {
        spin_loop();
    }
}

/// The same insertions and removals on a bare tree, with the check for overlaps.
fn bare_tree(live: u64) -> f64 {
    let mut tree: BTreeMap<u64, (u64, u64, u32)> = (0..live)
        .map(|index| index.wrapping_mul(7_368_787) % live * 2 * PAGE)
        .map(|first| (first, (first + PAGE - 1, 0x10_0000, 3)))
        .collect();
    let mut index = 0;
    let rates = (0..7)
        .map(|_| {
            let rounds = 800;
            let begin = Instant::now();
            for _ in 0..rounds {
                let start = index;
                for _ in 0..256 {
                    index += 1;
                    let first = between(index, live);
                    let last = first + PAGE - 1;
                    let before = tree.range(..=last).next_back();
                    if before.is_none_or(|(_, mapping)| mapping.0 < first) {
                        tree.insert(first, (last, first, 3));
                    }
                }
                for removed in start + 1..=index {
                    black_box(tree.remove(&between(removed, live)));
                }
            }
            (rounds * 512) as f64 / begin.elapsed().as_secs_f64()
        })
        .collect();
    median(rates)
}
