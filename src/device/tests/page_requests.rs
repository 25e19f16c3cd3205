// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Page requests: `virtio-spec/`, statement by statement.

use std::collections::HashSet;

use super::fake::{Call, FakeHost, FakeQueue};
use super::*;
use crate::host::{Answer, Attachment, PageRequests};
use crate::spec::Reason;

const R: EventFlags = EventFlags::READ;
const W: EventFlags = EventFlags::WRITE;

/// Endpoint 1 in domain 7 with PAGE_REQUEST.
pub(super) fn attached() -> Bench {
    configured(DeviceConfig::default())
}

pub(super) fn configured(config: DeviceConfig) -> Bench {
    let bench = Bench::with(config, FakeHost::new(&[1, 2, 3]));
    assert_eq!(bench.attach_with(7, 1, PAGE_REQUEST), Status::Ok);
    bench
}

pub(super) fn groups_of(events: &[Vec<u8>]) -> Vec<(u32, u16)> {
    events
        .iter()
        .map(|bytes| event(bytes))
        .map(|event| (event.endpoint.get(), event.group_id.get()))
        .collect()
}

#[test]
fn a_group_becomes_events_and_its_answer_reaches_the_host__e65_x36_x37_x45_x68() {
    let bench = attached();
    let mut queue = FakeQueue::new(8);
    let first = crate::host::PageRequest {
        length: 0x100,
        ..page(0x5008, R | EventFlags::PRIVILEGED)
    };
    let cookie = bench.host.raise(requester(1), &[first, page(0x9fff, W)]);
    bench.service(&mut queue);
    let events = queue.take();
    assert_eq!(events.len(), 2);
    let (one, two) = (event(&events[0]), event(&events[1]));
    let common = EventFlags::PAGE_REQUEST | EventFlags::ADDRESS | EventFlags::GROUP_ID;
    assert_eq!(one.reason, Reason::Mapping as u8);
    assert_eq!(
        one.flags.get(),
        (R | EventFlags::PRIVILEGED | common).bits()
    );
    assert_eq!(two.flags.get(), (W | EventFlags::LAST | common).bits());
    // Addresses are on the granule; the hint counts from there.
    assert_eq!((one.address.get(), one.length.get()), (0x5000, 0x108));
    assert_eq!((two.address.get(), two.length.get()), (0x9000, 0));
    assert_eq!((one.endpoint.get(), one.pasid.get()), (1, 0));
    assert_eq!((one.reserved, one.reserved2.get()), ([0; 3], 0));
    assert_eq!(one.group_id, two.group_id);
    assert_eq!(bench.host.answers(), []);
    assert_eq!(bench.respond(1, one.group_id.get(), 0), Status::Ok);
    assert_eq!(bench.host.answers(), [(cookie, Answer::Success)]);
}

#[test]
fn each_code_reaches_the_host_as_it_can_take_it__x68() {
    let bench = attached();
    let mut queue = FakeQueue::new(8);
    let one = bench.host.raise(requester(1), &[page(0, R)]);
    let two = bench.host.raise(requester(1), &[page(0, R)]);
    bench.service(&mut queue);
    let groups = groups_of(&queue.take());
    assert_eq!(bench.respond(1, groups[0].1, 1), Status::Ok);
    assert_eq!(bench.respond(1, groups[1].1, 2), Status::Ok);
    assert_eq!(
        bench.host.answers(),
        [(one, Answer::Invalid), (two, Answer::ResponseFailure)]
    );
}

#[test]
fn bad_answers_leave_the_group_outstanding__x63_x66_x67() {
    let bench = attached();
    let mut queue = FakeQueue::new(8);
    bench.host.raise(requester(1), &[page(0, R)]);
    bench.service(&mut queue);
    let (_, group) = groups_of(&queue.take())[0];
    assert_eq!(bench.respond(1, group, 3), Status::Inval);
    assert_eq!(bench.respond_with(1, group, 0, 2, 0), Status::Inval);
    assert_eq!(bench.respond_with(1, group, 0, 0, 5), Status::Inval);
    // A PASID that is not the group's.
    assert_eq!(bench.respond_with(1, group, 0, 1, 5), Status::Inval);
    let mut reserved = response_bytes(1, group, 0, 0, 0);
    reserved.reserved[7] = 1;
    assert_eq!(
        bench.status(zerocopy::IntoBytes::as_bytes(&reserved)),
        Status::Inval
    );
    assert_eq!(bench.host.answers(), []);
    assert_eq!(bench.respond(1, group, 0), Status::Ok);
}

#[test]
fn stale_duplicate_and_foreign_answers_are_noent__x57_x65() {
    let bench = attached();
    bench.attach_with(8, 2, PAGE_REQUEST);
    let mut queue = FakeQueue::new(8);
    bench.host.raise(requester(1), &[page(0, R)]);
    bench.service(&mut queue);
    let (_, group) = groups_of(&queue.take())[0];
    assert_eq!(bench.respond(2, group, 0), Status::NoEnt);
    assert_eq!(bench.respond(99, group, 0), Status::NoEnt);
    assert_eq!(bench.respond(1, group.wrapping_add(1), 0), Status::NoEnt);
    assert_eq!(bench.respond(1, group, 0), Status::Ok);
    assert_eq!(bench.respond(1, group, 0), Status::NoEnt);
    assert_eq!(bench.host.answers().len(), 1);
    assert_eq!(bench.device.counters().page_response_stale.get(), 4);
}

#[test]
fn a_group_waits_until_all_of_it_fits__x48() {
    let bench = attached();
    let mut queue = FakeQueue::new(0);
    let pages: Vec<_> = (0..4).map(|i| page(i * GRANULE, R)).collect();
    bench.host.raise(requester(1), &pages);
    bench.service(&mut queue);
    queue.buffers.extend([32; 3]);
    bench.service(&mut queue);
    assert_eq!(queue.take().len(), 0);
    queue.buffers.push_back(32);
    bench.service(&mut queue);
    assert_eq!(queue.take().len(), 4);
    assert_eq!(bench.host.answers(), []);
}

#[test]
fn groups_of_an_endpoint_keep_their_order_and_hold_up_no_other_endpoint__x45_x49_x50() {
    let bench = attached();
    bench.attach_with(8, 2, PAGE_REQUEST);
    let mut queue = FakeQueue::new(3);
    let big: Vec<_> = (0..5).map(|i| page(i * GRANULE, R)).collect();
    bench.host.raise(requester(1), &big);
    bench.host.raise(requester(1), &[page(0x10_0000, R)]);
    bench
        .host
        .raise(requester(2), &[page(0x20_0000, R), page(0x20_1000, R)]);
    bench.service(&mut queue);
    let events = queue.take();
    // Endpoint 1 waits with both; endpoint 2 is served, its events side by side.
    assert_eq!(
        groups_of(&events).iter().map(|g| g.0).collect::<Vec<_>>(),
        [2, 2]
    );
    queue.buffers.extend([32; 6]);
    bench.service(&mut queue);
    let addresses: Vec<_> = queue
        .take()
        .iter()
        .map(|e| event(e).address.get())
        .collect();
    assert_eq!(addresses, [0, 0x1000, 0x2000, 0x3000, 0x4000, 0x10_0000]);
}

#[test]
fn endpoints_take_turns__x50() {
    let bench = attached();
    bench.attach_with(8, 2, PAGE_REQUEST);
    for _ in 0..3 {
        bench.host.raise(requester(1), &[page(0, R)]);
        bench.host.raise(requester(2), &[page(0, R)]);
    }
    let mut order = Vec::new();
    for _ in 0..6 {
        let mut queue = FakeQueue::new(1);
        bench.service(&mut queue);
        order.extend(groups_of(&queue.take()).iter().map(|g| g.0));
    }
    assert_eq!(order, [1, 2, 1, 2, 1, 2]);
}

#[test]
fn groups_over_the_quota_are_answered_and_counted__x26_x51() {
    let config = DeviceConfig {
        max_page_requests: 2,
        ..DeviceConfig::default()
    };
    let bench = configured(config);
    bench.attach_with(8, 2, PAGE_REQUEST);
    let mut queue = FakeQueue::new(8);
    bench.host.raise(requester(1), &[page(0, R)]);
    bench.host.raise(requester(2), &[page(0, R)]);
    let third = bench.host.raise(requester(2), &[page(0, R)]);
    bench.service(&mut queue);
    assert_eq!(bench.host.answers(), [(third, Answer::Invalid)]);
    assert_eq!(bench.device.counters().page_request_over_quota.get(), 1);
    let groups = groups_of(&queue.take());
    assert_eq!(groups.len(), 2);
    bench.respond(1, groups[0].1, 0);
    bench.host.answers();
    bench.host.raise(requester(2), &[page(0, R)]);
    bench.service(&mut queue);
    assert_eq!(bench.host.answers(), []);
}

#[test]
fn group_ids_go_round_and_are_unique_while_outstanding__x47() {
    let bench = attached();
    let mut ids = Vec::new();
    for _ in 0..3 {
        let mut queue = FakeQueue::new(1);
        bench.host.raise(requester(1), &[page(0, R)]);
        bench.service(&mut queue);
        ids.push(groups_of(&queue.take())[0].1);
        bench.respond(1, ids[ids.len() - 1], 0);
    }
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), 3, "a late answer could meet a new group");
}

#[test]
fn a_group_id_stays_unique_over_the_wrap_of_16_bits__x46_x47() {
    let bench = attached();
    let mut queue = FakeQueue::new(1);
    bench.host.raise(requester(1), &[page(0, R)]);
    bench.service(&mut queue);
    let (_, kept) = groups_of(&queue.take())[0];
    let rounds = if cfg!(miri) { 10 } else { 70_000 };
    let mut used = HashSet::from([kept]);
    for _ in 0..rounds {
        queue.buffers.push_back(32);
        bench.host.raise(requester(1), &[page(0, R)]);
        bench.service(&mut queue);
        let (_, id) = groups_of(&queue.take())[0];
        // Every other id comes before one comes again.
        if used.len() > usize::from(u16::MAX) {
            used = HashSet::from([kept]);
        }
        assert!(used.insert(id), "{id} came too early");
        assert_eq!(bench.respond(1, id, 0), Status::Ok);
    }
}

#[test]
fn moves_and_resets_withdraw_the_groups_of_their_scope__x54() {
    type Move = fn(&Bench);
    let moves: [(&str, Move); 7] = [
        ("detach", |b| assert_eq!(b.detach(7, 1), Status::Ok)),
        ("attach elsewhere", |b| {
            assert_eq!(b.attach_with(9, 1, PAGE_REQUEST), Status::Ok)
        }),
        ("attach without the flag", |b| {
            assert_eq!(b.attach(7, 1), Status::Ok)
        }),
        ("reset", |b| b.device.reset()),
        ("the driver's end", |b| b.device.end_driver()),
        ("disconnect", |b| b.device.disconnect()),
        ("removal", |b| {
            b.device.remove_endpoint(EndpointId(1)).unwrap()
        }),
    ];
    for (name, action) in moves {
        let bench = attached();
        let mut queue = FakeQueue::new(1);
        let delivered = bench.host.raise(requester(1), &[page(0, R)]);
        let held = bench.host.raise(requester(1), &[page(0, R)]);
        bench.service(&mut queue);
        let (_, group) = groups_of(&queue.take())[0];
        let unread = bench.host.raise(requester(1), &[page(0, R)]);
        action(&bench);
        let answers = bench.host.answers();
        for cookie in [delivered, held, unread] {
            assert!(
                answers.contains(&(cookie, Answer::Invalid)),
                "{name}: {cookie:?}"
            );
        }
        bench
            .device
            .negotiate(bench.device.offered_features().bits());
        assert_eq!(bench.respond(1, group, 0), Status::NoEnt, "{name}");
        queue.buffers.extend([32; 4]);
        bench.service(&mut queue);
        assert_eq!(
            queue.take().len(),
            0,
            "{name}: a withdrawn group was delivered"
        );
        assert_eq!(
            bench.device.counters().page_request_withdrawn.get(),
            2,
            "{name}"
        );
    }
}

#[test]
fn attaching_again_with_the_flag_keeps_groups_outstanding__x15_x56() {
    let bench = attached();
    let mut queue = FakeQueue::new(1);
    bench.host.raise(requester(1), &[page(0, R)]);
    bench.service(&mut queue);
    let (_, group) = groups_of(&queue.take())[0];
    assert_eq!(bench.attach_with(7, 1, PAGE_REQUEST), Status::Ok);
    assert_eq!(bench.host.answers(), []);
    assert_eq!(bench.respond(1, group, 0), Status::Ok);
}

#[test]
fn a_late_answer_never_touches_the_group_that_has_its_cookie_now__x57_x65() {
    let bench = attached();
    let mut queue = FakeQueue::new(8);
    let old = bench.host.raise(requester(1), &[page(0, R)]);
    bench.service(&mut queue);
    let (_, group) = groups_of(&queue.take())[0];
    bench.attach_with(9, 1, PAGE_REQUEST);
    bench.host.answers();
    let new = bench.host.raise(requester(1), &[page(0, R)]);
    assert_eq!(new, old, "the fake gives cookies out again, as Linux does");
    bench.service(&mut queue);
    assert_eq!(bench.respond(1, group, 0), Status::NoEnt);
    assert_eq!(bench.host.answers(), []);
    assert_eq!(bench.host.waiting(), [new]);
}

#[test]
fn a_map_before_a_page_response_is_on_the_host_before_the_answer__x69() {
    let bench = attached();
    let mut queue = FakeQueue::new(8);
    bench.host.raise(requester(1), &[page(0x5000, R)]);
    bench.service(&mut queue);
    let (_, group) = groups_of(&queue.take())[0];
    let response = response_bytes(1, group, 0, 0, 0);
    let mut batch = bench.device.requests();
    let map = map_bytes(7, 0x5000, 0x5fff, 0x8000, RW);
    batch.execute(&map, map.len(), 4);
    assert_eq!(bench.host.mapped(7).len(), 1);
    assert_eq!(bench.host.answers(), []);
    let bytes = zerocopy::IntoBytes::as_bytes(&response);
    batch.execute(bytes, bytes.len(), 4);
    assert_eq!(bench.host.answers().len(), 1);
}

#[test]
fn response_failure_turns_page_requests_off_until_attached_again__x15_x70_x71() {
    let bench = attached();
    let mut queue = FakeQueue::new(8);
    let older = bench.host.raise(requester(1), &[page(0, R)]);
    let failed = bench.host.raise(requester(1), &[page(0, R)]);
    bench.service(&mut queue);
    let groups = groups_of(&queue.take());
    assert_eq!(bench.respond(1, groups[1].1, 2), Status::Ok);
    assert_eq!(
        bench.host.answers(),
        [(failed, Answer::ResponseFailure), (older, Answer::Invalid)]
    );
    assert_eq!(bench.respond(1, groups[0].1, 0), Status::NoEnt);
    let off = |bench: &Bench| match bench.host.attachment(requester(1)) {
        Attachment::Domain { page_requests, .. } => page_requests,
        other => panic!("{other:?}"),
    };
    assert_eq!(off(&bench), PageRequests::Off);
    // Mappings are still in force, and what comes anyway is answered at once.
    bench.map(7, 0, 0xfff, 0x8000, RW);
    assert_eq!(bench.translate(1, 0, true), Some(0x8000));
    let late = bench.host.raise(requester(1), &[page(0, R)]);
    bench.service(&mut queue);
    assert_eq!(bench.host.answers(), [(late, Answer::Invalid)]);
    // Attaching without the flag does not turn them on, in this domain or another.
    assert_eq!(bench.attach(7, 1), Status::Ok);
    assert_eq!(off(&bench), PageRequests::Off);
    assert_eq!(bench.attach(8, 1), Status::Ok);
    assert_eq!(off(&bench), PageRequests::Off);
    assert_eq!(bench.attach_with(8, 1, PAGE_REQUEST), Status::Ok);
    assert_eq!(off(&bench), PageRequests::Reported);
    bench.device.reset();
    bench.attach(8, 1);
    assert_eq!(off(&bench), PageRequests::Unwanted);
}

#[test]
fn translations_outlive_the_driver_and_page_requests_do_not() {
    let bench = attached();
    bench.map(7, 0, 0xfff, 0x8000, RW);
    bench.device.suspend(bench.now);
    bench.device.end_driver();
    assert_eq!(bench.translate(1, 0, true), Some(0x8000));
    let late = bench.host.raise(requester(1), &[page(0x1000, R)]);
    bench.service(&mut FakeQueue::new(8));
    assert_eq!(bench.host.answers(), [(late, Answer::Invalid)]);
    // In bypass.
    bench.device.reset();
    assert_eq!(bench.translate(1, 0, true), Some(0));
}

#[test]
fn response_failure_is_kept_even_when_the_host_cannot_move_the_endpoint__x70() {
    let bench = attached();
    let mut queue = FakeQueue::new(8);
    let older = bench.host.raise(requester(1), &[page(0, R)]);
    bench.host.raise(requester(1), &[page(0, R)]);
    bench.service(&mut queue);
    let groups = groups_of(&queue.take());
    bench.host.fail(Some(Call::AttachDomain));
    assert_eq!(bench.respond(1, groups[1].1, 2), Status::Ok);
    assert!(bench.host.answers().contains(&(older, Answer::Invalid)));
    let late = bench.host.raise(requester(1), &[page(0, R)]);
    bench.service(&mut queue);
    assert_eq!(bench.host.answers(), [(late, Answer::Invalid)]);
}

#[test]
fn a_thousand_groups_are_answered_in_any_order__x57_x68() {
    let bench = attached();
    let count = if cfg!(miri) { 20 } else { 1000 };
    let mut queue = FakeQueue::new(count);
    let cookies: Vec<_> = (0..count as u64)
        .map(|i| bench.host.raise(requester(1), &[page(i * GRANULE, R)]))
        .collect();
    bench.service(&mut queue);
    let mut events: Vec<_> = queue.take().iter().map(|bytes| event(bytes)).collect();
    assert_eq!(events.len(), count);
    // Any order will do that is not theirs.
    events.sort_by_key(|event| event.group_id.get().wrapping_mul(40503));
    for event in &events {
        assert_eq!(bench.respond(1, event.group_id.get(), 0), Status::Ok);
        let expected = cookies[(event.address.get() / GRANULE) as usize];
        assert_eq!(bench.host.answers(), [(expected, Answer::Success)]);
    }
    assert!(bench.host.waiting().is_empty());
}

#[test]
fn a_group_whose_host_call_fails_stays_outstanding__x67() {
    let bench = attached();
    let mut queue = FakeQueue::new(1);
    let cookie = bench.host.raise(requester(1), &[page(0, R)]);
    bench.service(&mut queue);
    let (_, group) = groups_of(&queue.take())[0];
    bench.host.fail(Some(Call::Respond));
    assert_eq!(bench.respond(1, group, 0), Status::NoMem);
    bench.host.fail(None);
    assert_eq!(bench.respond(1, group, 0), Status::Ok);
    assert_eq!(bench.host.answers(), [(cookie, Answer::Success)]);
}
