// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What belongs to one connection, or to one driver, does not reach the next.

use super::fake::{Call, FakeHost, FakeQueue};
use super::*;
use crate::host::{Answer, Attachment, Fault};
use crate::spec::Reason;

const R: EventFlags = EventFlags::READ;

fn blocked(address: u64) -> Fault {
    Fault {
        requester: requester(1),
        reason: Reason::Domain,
        address: Some(Iova(address)),
        access: R,
    }
}

fn bench() -> Bench {
    let config = DeviceConfig {
        boot_bypass: false,
        ..DeviceConfig::default()
    };
    Bench::with(config, FakeHost::new(&[1]))
}

fn connect(bench: &Bench) {
    bench.device.connect();
    bench
        .device
        .negotiate(bench.device.offered_features().bits());
}

/// The addresses in the reports that a driver gets with its first request.
fn reported(bench: &Bench) -> Vec<u64> {
    let mut queue = FakeQueue::new(128);
    assert_eq!(bench.status(&probe_bytes(9)), Status::NoEnt);
    bench.service(&mut queue);
    let reports = queue.take();
    reports
        .iter()
        .map(|report| fault(report).address.get())
        .collect()
}

fn counted(bench: &Bench) -> (u64, u64) {
    let counters = bench.device.counters();
    (
        counters.fault_reports.get(),
        counters.fault_reports_dropped.get(),
    )
}

#[test]
fn what_came_while_no_front_end_was_connected_is_not_for_the_next_guest() {
    let bench = bench();
    bench.device.disconnect();
    // Some are taken while there is no front-end, some wait on the host until one comes.
    for address in 0..80 {
        bench.host.fault(blocked(address));
        if address == 40 {
            bench.service_without_queue();
        }
    }
    bench.host.dropped(3);
    let group = bench.host.raise(requester(1), &[page(0, R)]);
    connect(&bench);
    assert_eq!(bench.host.answers(), [(group, Answer::Invalid)]);
    assert_eq!(counted(&bench), (0, 84));
    // Its own are its own.
    for address in 100..110 {
        bench.host.fault(blocked(address));
    }
    assert_eq!(reported(&bench), Vec::from_iter(100..110));
    assert_eq!(counted(&bench), (10, 84));
}

#[test]
fn what_came_in_one_connection_is_not_for_the_next() {
    let bench = bench();
    bench.attach_with(7, 1, PAGE_REQUEST);
    let delivered = bench.host.raise(requester(1), &[page(0, R)]);
    bench.service(&mut FakeQueue::new(1));
    let held = bench.host.raise(requester(1), &[page(0, R)]);
    bench.host.fault(blocked(1));
    bench.service(&mut FakeQueue::new(0));
    bench.host.fault(blocked(2));
    bench.device.disconnect();
    assert_eq!(
        bench.host.answers(),
        [(delivered, Answer::Invalid), (held, Answer::Invalid)]
    );
    connect(&bench);
    assert!(reported(&bench).is_empty());
    assert_eq!(counted(&bench), (0, 2));
}

#[test]
fn what_came_in_the_time_of_one_driver_is_not_for_the_next() {
    let bench = bench();
    assert!(reported(&bench).is_empty());
    bench.host.fault(blocked(1));
    bench.service_without_queue();
    bench.host.fault(blocked(2));
    bench.device.reset();
    bench.host.fault(blocked(3));
    assert_eq!(reported(&bench), [3]);
    assert_eq!(counted(&bench), (1, 2));
}

#[test]
fn a_driver_that_is_faster_than_the_news_of_its_connection_keeps_its_reports() {
    let bench = bench();
    bench.device.disconnect();
    bench
        .device
        .negotiate(bench.device.offered_features().bits());
    assert_eq!(bench.status(&probe_bytes(9)), Status::NoEnt);
    bench.host.fault(blocked(1));
    bench.service_without_queue();
    bench.device.connect();
    assert_eq!(reported(&bench), [1]);
}

#[test]
fn every_fault_is_reported_or_counted_as_dropped__e67() {
    let bench = bench();
    let mut queue = FakeQueue::new(16);
    assert_eq!(bench.status(&probe_bytes(9)), Status::NoEnt);
    for address in 0..100 {
        bench.host.fault(blocked(address));
    }
    bench.host.dropped(17);
    bench.service(&mut queue);
    assert_eq!(counted(&bench), (16, 100 - 64 + 17));
    // One more waits when the endpoint goes.
    bench.device.remove_endpoint(EndpointId(1)).unwrap();
    assert_eq!(counted(&bench), (16, 100 - 16 + 17));
}

#[test]
fn groups_of_an_attachment_that_the_host_cannot_end_are_answered_at_a_reset__x54() {
    let bench = bench();
    bench.attach_with(7, 1, PAGE_REQUEST);
    let cookie = bench.host.raise(requester(1), &[page(0, R)]);
    bench.service(&mut FakeQueue::new(1));
    bench.host.fail(Some(Call::Block));
    bench.device.reset();
    assert_eq!(bench.host.answers(), [(cookie, Answer::Invalid)]);
    assert!(matches!(
        bench.host.attachment(requester(1)),
        Attachment::Domain { .. }
    ));
    // The next driver's first request finds the endpoint where a reset puts it.
    bench.host.fail(None);
    assert_eq!(bench.status(&probe_bytes(9)), Status::NoEnt);
    assert_eq!(bench.host.attachment(requester(1)), Attachment::Blocked);
    assert_eq!(bench.host.domains(), [].into());
}
