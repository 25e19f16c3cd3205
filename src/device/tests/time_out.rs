// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! How long groups wait, and what is left of those that do not any more.

use super::fake::FakeQueue;
use super::page_requests::{attached, configured, groups_of};
use super::*;
use crate::host::{Answer, Cookie};

const R: EventFlags = EventFlags::READ;

#[test]
fn an_unanswered_group_is_answered_when_its_time_is_up__x53() {
    let mut bench = attached();
    let mut queue = FakeQueue::new(1);
    let delivered = bench.host.raise(requester(1), &[page(0, R)]);
    let held = bench.host.raise(requester(1), &[page(0, R)]);
    let deadline = bench.service(&mut queue).expect("a deadline");
    assert_eq!(deadline, bench.now + Duration::from_secs(10));
    let (_, group) = groups_of(&queue.take())[0];
    bench.later(9);
    assert_eq!(bench.service(&mut queue), Some(deadline));
    assert_eq!(bench.host.answers(), []);
    bench.later(1);
    assert_eq!(bench.service(&mut queue), None);
    assert_eq!(
        bench.host.answers(),
        [(delivered, Answer::Invalid), (held, Answer::Invalid)]
    );
    assert_eq!(bench.respond(1, group, 0), Status::NoEnt);
    assert_eq!(bench.device.counters().page_request_timeouts.get(), 2);
}

#[test]
fn without_a_time_out_a_group_waits_for_ever__x48_x53() {
    let config = DeviceConfig {
        page_response_timeout: None,
        ..DeviceConfig::default()
    };
    let mut bench = configured(config);
    let mut queue = FakeQueue::new(1);
    bench.host.raise(requester(1), &[page(0, R)]);
    assert_eq!(bench.service(&mut queue), None);
    bench.later(1_000_000);
    bench.service(&mut queue);
    assert_eq!(bench.host.answers(), []);
}

#[test]
fn answered_groups_leave_every_list() {
    let bench = attached();
    let rounds = if cfg!(miri) { 100 } else { 10_000 };
    let mut queue = FakeQueue::new(rounds);
    for _ in 0..rounds {
        let cookie: Cookie = bench.host.raise(requester(1), &[page(0, R)]);
        bench.service(&mut queue);
        let (_, id) = groups_of(&queue.take())[0];
        bench.respond(1, id, 0);
        assert_eq!(bench.host.answers(), [(cookie, Answer::Success)]);
    }
    assert!(bench.device.book().entries_kept() == 0);
}

#[test]
fn groups_that_time_out_leave_every_list__x53() {
    let mut bench = attached();
    let rounds = if cfg!(miri) { 10 } else { 1000 };
    // Nobody sets up an event queue.
    for _ in 0..rounds {
        bench.host.raise(requester(1), &[page(0, R)]);
        assert!(bench.service_without_queue().is_some());
        bench.later(10);
        assert_eq!(bench.service_without_queue(), None);
        assert_eq!(bench.device.book().entries_kept(), 0);
    }
    let timeouts = bench.device.counters().page_request_timeouts.get();
    assert_eq!(timeouts, rounds);
}

#[test]
fn time_stands_still_while_suspended_and_events_are_held__x53() {
    let mut bench = attached();
    let mut queue = FakeQueue::new(4);
    let before = bench.host.raise(requester(1), &[page(0, R)]);
    bench.service(&mut queue);
    bench.later(4);
    bench.device.suspend(bench.now);
    bench.later(7);
    // A second stop is no new one.
    bench.device.suspend(bench.now);
    let meanwhile = bench.host.raise(requester(1), &[page(0, R)]);
    bench.later(1_000_000);
    assert_eq!(bench.service(&mut queue), None);
    assert_eq!(bench.host.answers(), []);
    assert_eq!(queue.take().len(), 1);
    bench.device.resume(bench.now);
    assert_eq!(
        bench.service(&mut queue),
        Some(bench.now + Duration::from_secs(6))
    );
    assert_eq!(queue.take().len(), 1);
    bench.later(6);
    let next = bench.service(&mut queue);
    assert_eq!(bench.host.answers(), [(before, Answer::Invalid)]);
    // The one that came meanwhile has all its time.
    assert_eq!(next, Some(bench.now + Duration::from_secs(4)));
    bench.later(4);
    assert_eq!(bench.service(&mut queue), None);
    assert_eq!(bench.host.answers(), [(meanwhile, Answer::Invalid)]);
}

#[test]
fn after_a_reset_while_suspended_time_runs__x53() {
    let mut bench = attached();
    bench.device.suspend(bench.now);
    bench.later(100);
    bench.device.reset();
    bench.attach_with(7, 1, PAGE_REQUEST);
    let cookie = bench.host.raise(requester(1), &[page(0, R)]);
    let mut queue = FakeQueue::new(4);
    assert_eq!(
        bench.service(&mut queue),
        Some(bench.now + Duration::from_secs(10))
    );
    bench.later(10);
    bench.service(&mut queue);
    assert_eq!(bench.host.answers(), [(cookie, Answer::Invalid)]);
}

#[test]
fn time_stands_still_while_what_serves_the_queues_is_replaced__x53() {
    let mut bench = attached();
    let mut queue = FakeQueue::new(4);
    let cookie = bench.host.raise(requester(1), &[page(0, R)]);
    bench.service(&mut queue);
    bench.later(4);
    assert!(!bench.device.stop_time(bench.now));
    assert!(bench.device.stop_time(bench.now));
    bench.later(1_000_000);
    assert_eq!(bench.service(&mut queue), None);
    assert_eq!(bench.host.answers(), []);
    // The driver is there, and so are its tables.
    assert!(!bench.host.holds_tables());
    bench.device.restart_time(bench.now);
    assert_eq!(
        bench.service(&mut queue),
        Some(bench.now + Duration::from_secs(6))
    );
    bench.later(6);
    bench.service(&mut queue);
    assert_eq!(bench.host.answers(), [(cookie, Answer::Invalid)]);
    // Stopped queues go on standing still.
    bench.device.suspend(bench.now);
    assert!(bench.device.stop_time(bench.now));
}
