// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A MAP request through device and host, beside the bare call that it comes down to.

use std::fs::File;
use std::time::Instant;

use crate::common::requests::{self, READ, WRITE};
use crate::kernel::{io, ioctl};
use crate::setup::{Setup, execute};
use crate::{Figure, compare, median};

const IOMMU_IOAS_COPY: u64 = io(0x83);
const IOMMU_IOAS_UNMAP: u64 = io(0x86);
/// FIXED_IOVA, WRITEABLE and READABLE.
const COPY_FLAGS: u32 = 7;

const PAGE: u64 = 4096;
const PAGES: u64 = 1000;
const ROUNDS: usize = 15;
const IOVA: u64 = 0x4000_0000;

/// Every other page, so that no two mappings touch.
fn iova(page: u64) -> u64 {
    IOVA + 2 * page * PAGE
}

pub fn figure() -> Figure {
    let Setup {
        kernel,
        device,
        placed: source,
    } = Setup::new(1, 16 << 20);
    let before = kernel.address_spaces();
    execute(&device, &[requests::attach(1, 1, 0)]);
    let after = kernel.address_spaces();
    let domain = *after
        .iter()
        .find(|id| !before.contains(id))
        .expect("a domain");

    let context = File::from(kernel.descriptor());
    let maps: Vec<_> = (0..PAGES)
        .map(|page| {
            requests::map(
                1,
                iova(page),
                iova(page) + PAGE - 1,
                page * PAGE,
                READ | WRITE,
            )
        })
        .collect();
    let unmap = [requests::unmap(1, 0, u64::MAX)];
    let (mut ours, mut bare) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let start = Instant::now();
        execute(&device, &maps);
        ours.push(per_page(start));
        execute(&device, &unmap);

        let start = Instant::now();
        for page in 0..PAGES {
            copy(&context, domain, iova(page), source, page * PAGE);
        }
        bare.push(per_page(start));
        let mut all = [24u32, domain, 0, 0, u32::MAX, u32::MAX];
        ioctl(&context, IOMMU_IOAS_UNMAP, &mut all).expect("IOMMU_IOAS_UNMAP");
    }
    compare(
        "MAP of a page, device and host",
        median(ours),
        ("bare IOMMU_IOAS_COPY", median(bare)),
        1.3,
        "at most 1.3",
    )
}

fn per_page(start: Instant) -> f64 {
    start.elapsed().as_secs_f64() * 1e6 / PAGES as f64
}

fn copy(context: &File, to: u32, iova: u64, from: u32, gpa: u64) {
    let half = |value: u64, upper: bool| (value >> if upper { 32 } else { 0 }) as u32;
    let mut command = [
        40,
        COPY_FLAGS,
        to,
        from,
        half(PAGE, false),
        half(PAGE, true),
        half(iova, false),
        half(iova, true),
        half(gpa, false),
        half(gpa, true),
    ];
    ioctl(context, IOMMU_IOAS_COPY, &mut command).expect("IOMMU_IOAS_COPY");
}
