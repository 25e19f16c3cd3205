// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Fault reports, and page requests that become one.

use super::fake::{FakeHost, FakeQueue};
use super::page_requests::attached;
use super::*;
use crate::device::events::MAX_REPORTS;
use crate::host::{Answer, Fault, HostEvent};
use crate::spec::Reason;

const R: EventFlags = EventFlags::READ;
const W: EventFlags = EventFlags::WRITE;

#[test]
fn without_the_feature_a_group_is_refused_and_reported__x35_x43() {
    let bench = Bench::new();
    bench.negotiate_without(Features::PAGE_REQUEST);
    bench.attach(7, 1);
    let mut queue = FakeQueue::new(8);
    let cookie = bench.host.raise(requester(1), &[page(0x5123, W)]);
    bench.service(&mut queue);
    assert_eq!(bench.host.answers(), [(cookie, Answer::Invalid)]);
    let report = fault(&queue.take()[0]);
    assert_eq!(report.reason, Reason::Mapping as u8);
    assert_eq!(report.flags.get(), (W | EventFlags::ADDRESS).bits());
    assert_eq!((report.endpoint.get(), report.address.get()), (1, 0x5123));
}

#[test]
fn without_the_flag_a_group_is_refused_and_reported__x43() {
    let bench = Bench::new();
    bench.attach(7, 1);
    let mut queue = FakeQueue::new(8);
    let cookie = bench.host.raise(requester(1), &[page(0x5000, R)]);
    bench.service(&mut queue);
    assert_eq!(bench.host.answers(), [(cookie, Answer::Invalid)]);
    assert_eq!(queue.take().len(), 1);
    assert_eq!(bench.device.counters().page_request_unwanted.get(), 1);
}

#[test]
fn a_buffer_that_is_too_small_takes_the_report_instead__e68_x38() {
    let bench = attached();
    let mut queue = FakeQueue::new(0);
    queue.buffers = [24, 32, 32].into();
    let refused = bench.host.raise(requester(1), &[page(0x5000, R)]);
    bench.host.raise(requester(1), &[page(0x6000, R)]);
    bench.service(&mut queue);
    assert_eq!(bench.host.answers(), [(refused, Answer::Invalid)]);
    let events = queue.take();
    assert_eq!(fault(&events[0]).address.get(), 0x5000);
    assert_eq!(event(&events[1]).address.get(), 0x6000);
}

#[test]
fn a_buffer_too_small_for_any_report_is_returned_unused__e68() {
    let bench = attached();
    let mut queue = FakeQueue::new(0);
    queue.buffers = [23, 0, 24].into();
    let refused = bench.host.raise(requester(1), &[page(0x5000, R)]);
    bench.service(&mut queue);
    assert_eq!(bench.host.answers(), [(refused, Answer::Invalid)]);
    assert_eq!(queue.discarded, 2);
    assert_eq!(fault(&queue.take()[0]).address.get(), 0x5000);
    assert_eq!(bench.device.counters().event_buffers_bad.get(), 2);
}

#[test]
fn a_group_larger_than_the_queue_is_refused_at_once__x52() {
    let bench = attached();
    let mut queue = FakeQueue::new(2);
    queue.size = 2;
    let pages: Vec<_> = (0..3).map(|i| page(i * GRANULE, R)).collect();
    let cookie = bench.host.raise(requester(1), &pages);
    bench.service(&mut queue);
    assert_eq!(bench.host.answers(), [(cookie, Answer::Invalid)]);
    assert_eq!(fault(&queue.take()[0]).address.get(), 0);
}

#[test]
fn no_event_before_the_first_request__e67() {
    let config = DeviceConfig {
        boot_bypass: false,
        ..DeviceConfig::default()
    };
    let bench = Bench::with(config, FakeHost::new(&[1]));
    let mut queue = FakeQueue::new(4);
    let blocked = Fault {
        requester: requester(1),
        reason: Reason::Domain,
        address: Some(Iova(0x1234)),
        access: R,
    };
    bench.host.fault(blocked);
    bench.service(&mut queue);
    assert_eq!(queue.take().len(), 0);
    let mut batch = bench.device.requests();
    batch.execute(&[0xff; 4], 4, 4);
    assert!(batch.finish().events_wanted);
    bench.service(&mut queue);
    let report = fault(&queue.take()[0]);
    assert_eq!((report.reason, report.address.get()), (1, 0x1234));
    assert_eq!((report.reserved, report.reserved1.get()), ([0; 3], 0));
    // After a reset the next driver has to send a request first, too.
    bench.device.reset();
    bench.host.fault(blocked);
    bench.service(&mut queue);
    assert_eq!(queue.take().len(), 0);
}

#[test]
fn a_logged_fault_has_the_reason_that_its_attachment_gives_it() {
    let bench = attached();
    bench.attach_with(2, 2, BYPASS);
    let config = DeviceConfig {
        boot_bypass: false,
        ..DeviceConfig::default()
    };
    let blocked = Bench::with(config, FakeHost::new(&[1]));
    blocked.device.requests().execute(&[0xff; 4], 4, 4);
    let logged = |bench: &Bench, endpoint, reason| {
        bench.host.event(HostEvent::LoggedFault(Fault {
            requester: requester(endpoint),
            reason,
            address: Some(Iova(0x1000)),
            access: W,
        }));
        let mut queue = FakeQueue::new(1);
        bench.service(&mut queue);
        fault(&queue.take()[0]).reason
    };
    let reasons = [
        logged(&bench, 1, Reason::Mapping),
        logged(&blocked, 1, Reason::Mapping),
        logged(&bench, 2, Reason::Mapping),
        logged(&bench, 1, Reason::Unknown),
    ];
    let expected = [
        Reason::Mapping,
        Reason::Domain,
        Reason::Unknown,
        Reason::Unknown,
    ];
    assert_eq!(reasons, expected.map(|reason| reason as u8));
    bench.host.event(HostEvent::LogLinesLost(3));
    bench.service(&mut FakeQueue::new(0));
    assert_eq!(bench.device.counters().log_lines_lost.get(), 3);
}

#[test]
fn the_newest_reports_are_dropped_when_too_many_wait__e67() {
    let bench = attached();
    for address in 0..MAX_REPORTS as u64 + 10 {
        bench.host.fault(Fault {
            requester: requester(1),
            reason: Reason::Mapping,
            address: Some(Iova(address)),
            access: W,
        });
    }
    let mut queue = FakeQueue::new(0);
    bench.service(&mut queue);
    queue.buffers.extend([24; 100]);
    bench.service(&mut queue);
    let addresses: Vec<_> = queue
        .take()
        .iter()
        .map(|e| fault(e).address.get())
        .collect();
    assert_eq!(addresses, (0..MAX_REPORTS as u64).collect::<Vec<_>>());
    assert_eq!(bench.device.counters().fault_reports_dropped.get(), 10);
}

#[test]
fn a_report_without_address_has_no_address_flag__e66() {
    let bench = attached();
    let mut queue = FakeQueue::new(1);
    bench.host.fault(Fault {
        requester: requester(1),
        reason: Reason::Unknown,
        address: None,
        access: EventFlags::empty(),
    });
    bench.service(&mut queue);
    let report = fault(&queue.take()[0]);
    assert_eq!(
        (report.flags.get(), report.address.get(), report.reason),
        (0, 0, 0)
    );
}

#[test]
fn outside_a_domain_nothing_is_requested__x43_x44() {
    // Not attached: reason DOMAIN. In bypass nothing is missing, so the reason is unknown.
    for (boot_bypass, reason) in [(false, Reason::Domain), (true, Reason::Unknown)] {
        let config = DeviceConfig {
            boot_bypass,
            ..DeviceConfig::default()
        };
        let bench = Bench::with(config, FakeHost::new(&[1, 2]));
        // The driver is there.
        bench.attach(7, 2);
        let mut queue = FakeQueue::new(4);
        let cookie = bench.host.raise(requester(1), &[page(0x5000, W)]);
        bench.service(&mut queue);
        assert_eq!(bench.host.answers(), [(cookie, Answer::Invalid)]);
        let events = queue.take();
        assert_eq!(events.len(), 1);
        let report = fault(&events[0]);
        assert_eq!(report.reason, reason as u8);
        assert_eq!(report.flags.get(), (W | EventFlags::ADDRESS).bits());
    }
}

#[test]
fn a_fault_of_no_endpoint_is_no_event__e65_e69() {
    let bench = attached();
    let mut queue = FakeQueue::new(4);
    bench.host.fault(Fault {
        requester: requester(99),
        reason: Reason::Unknown,
        address: None,
        access: EventFlags::empty(),
    });
    bench.service(&mut queue);
    assert!(queue.take().is_empty());
    assert_eq!(bench.device.counters().fault_reports_dropped.get(), 1);
}
