// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Page requests and their answers, as the kernel names them.

use super::*;
use crate::kernel::{READ, WRITE};
use vhost_device_iommu::host::Answer;

fn reporting_endpoint() -> (Bench, MockDevice, Domain) {
    let bench = Bench::with_memory();
    let device = bench.endpoint(1);
    let domain = bench.domain(1);
    bench.attach(1, reported(&domain)).unwrap();
    (bench, device, domain)
}

#[test]
fn a_cookie_used_again_belongs_to_the_new_group_alone() {
    let (bench, device, domain) = reporting_endpoint();
    bench.kernel.page_request(device, 0, 1, READ, IOVA);
    let old = bench.groups()[0].cookie;
    let elsewhere = bench.domain(2);
    bench.attach(1, reported(&elsewhere)).unwrap();
    assert!(bench.is_dead(old));
    bench.kernel.page_request(device, 0, 1, WRITE, IOVA + 4096);
    let new = bench.groups()[0].cookie;
    assert_eq!(new, old, "the kernel hands out the lowest free cookie");
    bench.host.respond(new, Answer::Invalid).unwrap();
    assert!(bench.is_dead(new));
    drop(domain);
}

#[test]
fn page_requests_that_are_no_longer_wanted_are_answered_without_a_move() {
    let (bench, device, domain) = reporting_endpoint();
    bench.kernel.page_request(device, 0, 1, READ, IOVA);
    let cookie = bench.groups()[0].cookie;
    let table = bench.kernel.page_table(device);
    bench.attach(1, unwanted(&domain)).unwrap();
    assert_eq!(bench.kernel.page_table(device), table);
    assert!(bench.is_dead(cookie));
    // The kernel has forgotten it too: its cookie is free.
    bench.kernel.page_request(device, 0, 2, READ, IOVA);
    assert_eq!(
        bench.groups()[0].cookie,
        cookie,
        "still told, for the device to refuse"
    );
}
