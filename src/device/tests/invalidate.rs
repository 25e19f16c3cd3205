// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! INVALIDATE requests that are joined (draft 2). What each of them decides stands in `tables`.

use super::fake::{Call, Did, FakeHost};
use super::*;
use crate::host::mapping::IovaRange;

const ROOT: u64 = 0x7000;

fn page(number: u64) -> (u64, u64) {
    (number << 12, (number << 12) + 0xfff)
}

/// A batch of two INVALIDATEs of domain 8, one of domain 9, an UNMAP of domain 7 that removes something, another INVALIDATE
/// of domain 9, and one of no domain.
fn mixed_invalidates(bench: &Bench) -> Vec<Reply> {
    bench.attach(7, 1);
    bench.map(7, 0, 0xfff, 0, RW);
    bench.attach_table(8, 2, ROOT);
    bench.attach_table(9, 3, ROOT);
    bench.host.did();
    let invalidate = |domain, number| {
        let (first, last) = page(number);
        invalidate_bytes(domain, first, last).as_bytes().to_vec()
    };
    let requests = [
        invalidate(8, 1),
        invalidate(8, 2),
        invalidate(9, 3),
        unmap_bytes(7, 0, 0xfff),
        invalidate(9, 4),
        invalidate(6, 5),
    ];
    bench.batch(&requests.map(|request| (request, 4)))
}

#[test]
fn consecutive_invalidates_of_a_domain_are_one_call_of_a_host_that_wants_it__x104() {
    for (host, calls) in [
        (FakeHost::new(&[1, 2, 3]), 3),
        (FakeHost::new(&[1, 2, 3]).without_joining(), 4),
    ] {
        let bench = Bench::with(DeviceConfig::default(), host);
        let mut expected = vec![Reply::Status(Status::Ok); 5];
        expected.push(Reply::Status(Status::NoEnt));
        assert_eq!(mixed_invalidates(&bench), expected);
        let done = |domain, number| {
            let (first, last) = page(number);
            Did::Invalidate(DomainId(domain), IovaRange::new(first, last).unwrap())
        };
        assert_eq!(
            bench.host.did(),
            [
                done(8, 1),
                done(8, 2),
                done(9, 3),
                Did::Unmap(DomainId(7)),
                done(9, 4)
            ]
        );
        assert_eq!(bench.host.invalidate_calls(), calls);
        let counters = bench.device.counters();
        assert_eq!(
            (counters.invalidate.get(), counters.invalidate_failed.get()),
            (4, 1)
        );
    }
}

#[test]
fn joined_invalidates_fail_together_and_alone() {
    let bench = Bench::new();
    bench.host.fail(Some(Call::Invalidate));
    let failed = Reply::Status(Status::NoMem);
    let expected = [
        failed,
        failed,
        failed,
        Reply::Status(Status::Ok),
        failed,
        Reply::Status(Status::NoEnt),
    ];
    assert_eq!(mixed_invalidates(&bench), expected);
    let counters = bench.device.counters();
    assert_eq!(
        (counters.invalidate.get(), counters.invalidate_failed.get()),
        (0, 5)
    );
}
