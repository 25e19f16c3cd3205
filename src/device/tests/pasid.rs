// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Attachments per PASID (draft 1).

use super::fake::{Call, FakeHost, FakeQueue};
use super::*;
use crate::host::{Answer, Attachment};

const R: EventFlags = EventFlags::READ;

#[test]
fn pasid_and_plain_attachments_are_independent__x14_x21() {
    let bench = Bench::new();
    assert_eq!(bench.attach(7, 1), Status::Ok);
    assert_eq!(bench.attach_pasid(8, 1, PASID, 5), Status::Ok);
    bench.map(8, 0, 0xfff, 0x8000, RW);
    assert_eq!(
        bench.host.translate(pasid_requester(1, 5), 0, true),
        Some(0x8000)
    );
    assert_eq!(bench.translate(1, 0, true), None);
    assert_eq!(bench.detach(7, 1), Status::Ok);
    assert_eq!(
        bench.host.translate(pasid_requester(1, 5), 0, true),
        Some(0x8000)
    );
    assert_eq!(bench.host.domains(), [8].into());
    // A PASID that shares the domain of the endpoint keeps it alive.
    assert_eq!(bench.attach(8, 1), Status::Ok);
    assert_eq!(bench.detach(8, 1), Status::Ok);
    assert_eq!(bench.host.domains(), [8].into());
    assert_eq!(bench.detach_with(8, 1, PASID, 5), Status::Ok);
    assert_eq!(bench.host.domains(), [].into());
}

#[test]
fn an_unattached_pasid_is_never_in_bypass__x4() {
    let bench = Bench::new();
    assert_eq!(
        bench.host.attachment(pasid_requester(1, 5)),
        Attachment::Blocked
    );
    bench.attach_pasid(8, 1, PASID, 5);
    bench.detach_with(8, 1, PASID, 5);
    assert_eq!(
        bench.host.attachment(pasid_requester(1, 5)),
        Attachment::Blocked
    );
    // A bypass domain for it is another matter.
    assert_eq!(bench.attach_pasid(9, 1, PASID | BYPASS, 5), Status::Ok);
    assert_eq!(
        bench.host.attachment(pasid_requester(1, 5)),
        Attachment::Bypass
    );
}

#[test]
fn a_pasid_beyond_the_width_is_inval__x13_x20() {
    let bench = Bench::new();
    assert_eq!(bench.attach_pasid(7, 1, PASID, 256), Status::Inval);
    assert_eq!(bench.attach_pasid(7, 1, PASID, 255), Status::Ok);
    assert_eq!(bench.detach_with(7, 1, PASID, 256), Status::Inval);
    assert_eq!(bench.host.domains(), [7].into());
}

#[test]
fn detach_with_unknown_flags_is_inval_when_pasids_are_negotiated__x18() {
    let bench = Bench::new();
    bench.attach(7, 1);
    assert_eq!(bench.detach_with(7, 1, 1, 0), Status::Inval);
    assert_eq!(bench.detach_with(7, 1, PASID, 3), Status::Inval);
    assert_eq!(bench.detach_with(7, 1, 0, 0), Status::Ok);
}

#[test]
fn page_requests_of_a_pasid_carry_it_and_want_it_back__x36_x66() {
    let bench = Bench::new();
    bench.attach_pasid(7, 1, PASID | PAGE_REQUEST, 5);
    let mut queue = FakeQueue::new(4);
    let cookie = bench
        .host
        .raise(pasid_requester(1, 5), &[page(0x5000, R | EventFlags::EXEC)]);
    bench.service(&mut queue);
    let event = event(&queue.take()[0]);
    assert_eq!(event.pasid.get(), 5);
    assert!(
        EventFlags::from_bits_truncate(event.flags.get())
            .contains(EventFlags::PASID | EventFlags::EXEC)
    );
    let group = event.group_id.get();
    assert_eq!(bench.respond(1, group, 0), Status::Inval);
    assert_eq!(bench.respond_with(1, group, 0, 1, 6), Status::Inval);
    assert_eq!(bench.respond_with(1, group, 0, 1, 5), Status::Ok);
    assert_eq!(bench.host.answers(), [(cookie, Answer::Success)]);
}

#[test]
fn a_page_request_of_another_pasid_is_not_wanted__x43() {
    let bench = Bench::new();
    bench.attach_with(7, 1, PAGE_REQUEST);
    let mut queue = FakeQueue::new(4);
    let cookie = bench.host.raise(pasid_requester(1, 9), &[page(0x5000, R)]);
    bench.service(&mut queue);
    assert_eq!(bench.host.answers(), [(cookie, Answer::Invalid)]);
    let report = fault(&queue.take()[0]);
    assert_eq!(report.reserved1.get(), 9);
    assert!(EventFlags::from_bits_truncate(report.flags.get()).contains(EventFlags::PASID));
}

#[test]
fn detaching_a_pasid_withdraws_its_groups_only__x55() {
    let bench = Bench::new();
    bench.attach_with(7, 1, PAGE_REQUEST);
    bench.attach_pasid(8, 1, PASID | PAGE_REQUEST, 5);
    let mut queue = FakeQueue::new(4);
    let plain = bench.host.raise(requester(1), &[page(0, R)]);
    let of_pasid = bench.host.raise(pasid_requester(1, 5), &[page(0, R)]);
    bench.service(&mut queue);
    bench.detach_with(8, 1, PASID, 5);
    assert_eq!(bench.host.answers(), [(of_pasid, Answer::Invalid)]);
    assert_eq!(bench.host.waiting(), [plain]);
}

#[test]
fn response_failure_for_a_pasid_turns_off_the_whole_endpoint__x70() {
    let bench = Bench::with(DeviceConfig::default(), FakeHost::new(&[1, 2]));
    bench.attach_with(7, 1, PAGE_REQUEST);
    bench.attach_pasid(8, 1, PASID | PAGE_REQUEST, 5);
    let mut queue = FakeQueue::new(4);
    let plain = bench.host.raise(requester(1), &[page(0, R)]);
    let of_pasid = bench.host.raise(pasid_requester(1, 5), &[page(0, R)]);
    bench.service(&mut queue);
    let events: Vec<_> = queue.take().iter().map(|e| event(e)).collect();
    let failed = events.iter().find(|e| e.pasid.get() == 5).unwrap();
    assert_eq!(
        bench.respond_with(1, failed.group_id.get(), 2, 1, 5),
        Status::Ok
    );
    let answers = bench.host.answers();
    assert!(
        answers.contains(&(plain, Answer::Invalid))
            && answers.contains(&(of_pasid, Answer::ResponseFailure))
    );
}

#[test]
fn detach_without_the_flag_ignores_the_pasid__x19_x21() {
    let bench = Bench::new();
    bench.attach(7, 1);
    bench.attach_pasid(8, 1, PASID, 5);
    assert_eq!(bench.detach_with(7, 1, 0, 5), Status::Ok);
    assert_eq!(bench.host.domains(), [8].into());
    assert_eq!(bench.detach_with(8, 1, PASID, 5), Status::Ok);
}

#[test]
fn groups_of_an_endpoint_share_one_space_of_ids__x46() {
    let bench = Bench::new();
    bench.attach_with(7, 1, PAGE_REQUEST);
    bench.attach_pasid(8, 1, PASID | PAGE_REQUEST, 5);
    let mut queue = FakeQueue::new(4);
    let pages = [page(0, R), page(GRANULE, R)];
    bench.host.raise(requester(1), &pages);
    bench.host.raise(pasid_requester(1, 5), &pages);
    bench.service(&mut queue);
    let events: Vec<_> = queue.take().iter().map(|e| event(e)).collect();
    let of = |pasid: u32| {
        let ids: Vec<_> = events
            .iter()
            .filter(|event| event.pasid.get() == pasid)
            .map(|event| event.group_id.get())
            .collect();
        assert_eq!(ids.len(), 2);
        assert_eq!(ids[0], ids[1]);
        ids[0]
    };
    assert_ne!(of(0), of(5));
}

#[test]
fn the_pasid_flag_of_an_answer_needs_the_feature__x64() {
    let bench = Bench::new();
    bench.negotiate_without(Features::PASID);
    bench.attach_with(7, 1, PAGE_REQUEST);
    let mut queue = FakeQueue::new(4);
    bench.host.raise(requester(1), &[page(0, R)]);
    bench.service(&mut queue);
    let group = event(&queue.take()[0]).group_id.get();
    assert_eq!(bench.respond_with(1, group, 0, 1, 0), Status::Inval);
    assert_eq!(bench.respond(1, group, 0), Status::Ok);
}

#[test]
fn no_event_names_a_pasid_without_the_feature__x34() {
    let bench = Bench::new();
    bench.negotiate_without(Features::PASID);
    bench.attach_with(7, 1, PAGE_REQUEST);
    let mut queue = FakeQueue::new(4);
    bench.host.raise(requester(1), &[page(0, R)]);
    bench.host.raise(pasid_requester(1, 5), &[page(0, R)]);
    bench.service(&mut queue);
    let mut events = queue.take();
    let (request, report) = (event(&events.remove(1)), fault(&events.remove(0)));
    for (flags, pasid) in [
        (request.flags, request.pasid),
        (report.flags, report.reserved1),
    ] {
        assert!(!EventFlags::from_bits_retain(flags.get()).contains(EventFlags::PASID));
        assert_eq!(pasid.get(), 0);
    }
}

#[test]
fn pasid_attachments_are_counted_over_the_device_and_nomem_beyond_the_quota() {
    let config = DeviceConfig {
        max_pasids: 3,
        ..DeviceConfig::default()
    };
    let bench = Bench::with(config, FakeHost::new(&[1, 2]));
    let attach = |endpoint, pasid| bench.attach_pasid(7, endpoint, PASID, pasid);
    assert_eq!([attach(1, 1), attach(1, 2), attach(2, 1)], [Status::Ok; 3]);
    assert_eq!(attach(2, 2), Status::NoMem);
    assert_eq!(bench.attach_pasid(8, 2, PASID | BYPASS, 2), Status::NoMem);
    assert_eq!(bench.host.domains(), [7].into());
    // What is attached may move, and what has no PASID is not counted.
    assert_eq!(bench.attach_pasid(8, 1, PASID, 2), Status::Ok);
    assert_eq!(bench.attach(7, 2), Status::Ok);
    // Whatever ends an attachment makes room.
    assert_eq!(bench.detach_with(8, 1, PASID, 2), Status::Ok);
    assert_eq!([attach(2, 2), attach(2, 3)], [Status::Ok, Status::NoMem]);
    bench.device.remove_endpoint(EndpointId(2)).unwrap();
    assert_eq!([attach(1, 2), attach(1, 3)], [Status::Ok; 2]);
    assert_eq!(attach(1, 4), Status::NoMem);
    bench.device.reset();
    assert_eq!([attach(1, 4), attach(1, 5), attach(1, 6)], [Status::Ok; 3]);
    assert_eq!(attach(1, 7), Status::NoMem);
    // A refusal of the host takes none.
    bench.detach_with(7, 1, PASID, 4);
    bench.host.fail(Some(Call::AttachDomain));
    assert_eq!(attach(1, 7), Status::NoMem);
    bench.host.fail(None);
    assert_eq!(attach(1, 7), Status::Ok);
}
