// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! MAP and UNMAP through the device, beside a bare `BTreeMap` with an overlap check.
#![allow(
    missing_docs,
    reason = "criterion's macros make undocumented functions"
)]

#[path = "common/null_host.rs"]
mod null_host;

use std::collections::BTreeMap;
use std::hint::black_box;
use std::sync::Arc;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use vhost_device_iommu::device::{Device, DeviceConfig};
use vhost_device_iommu::spec::EndpointId;

use null_host::{NullHost, attach, map, unmap};

const PAGE: u64 = 4096;

/// Live mappings are every other page of a shuffled range; the measured pair goes in between.
fn scattered(index: u64, live: u64) -> u64 {
    // An odd factor permutes the indices of a power of two.
    (index.wrapping_mul(0x9e37_79b9_7f4a_7c15) % live) * 2 * PAGE
}

fn pairs(c: &mut Criterion) {
    for live in [1u64 << 10, 1 << 20] {
        let mut group = c.benchmark_group(format!("map+unmap, {live} live mappings"));
        group.throughput(Throughput::Elements(2));

        let config = DeviceConfig {
            max_mappings: 1 << 21,
            ..DeviceConfig::default()
        };
        let device = Device::new(config, Arc::new(NullHost), &[EndpointId(1)]).expect("device");
        device.negotiate(u64::MAX);
        let mut batch = device.requests();
        let request = attach(1, 1);
        batch.execute(&request, request.len(), 4);
        for index in 0..live {
            let request = map(1, scattered(index, live), PAGE);
            batch.execute(&request, request.len(), 4);
        }
        let mut index = 0u64;
        group.bench_function("device", |b| {
            b.iter(|| {
                index += 1;
                let iova = scattered(index, live) + PAGE;
                let request = map(1, iova, PAGE);
                black_box(batch.execute(&request, request.len(), 4));
                let request = unmap(1, iova, PAGE);
                black_box(batch.execute(&request, request.len(), 4));
            });
        });
        drop(batch);

        let mut table: BTreeMap<u64, (u64, u64, u32)> = (0..live)
            .map(|index| scattered(index, live))
            .map(|iova| (iova, (iova + PAGE - 1, iova, 3)))
            .collect();
        group.bench_function("bare BTreeMap", |b| {
            b.iter(|| {
                index += 1;
                let iova = scattered(index, live) + PAGE;
                let last = iova + PAGE - 1;
                let before = table.range(..=last).next_back();
                if before.is_none_or(|(_, mapping)| mapping.0 < iova) {
                    table.insert(iova, (last, iova, 3));
                }
                black_box(table.remove(&iova));
            });
        });
        group.finish();
    }
}

criterion_group!(benches, pairs);
criterion_main!(benches);
