// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A page request from the hardware to the guest, and its answer back.

use super::*;
use crate::common::requests::PASID;
use crate::kernel;

#[test]
fn a_page_request_is_answered_after_a_map() {
    let (program, mut guest) = with_page_requests(&[], 4);
    program.page_request(ENDPOINT, kernel::READ | kernel::WRITE, IOVA);
    let event = guest.page_request();
    assert_eq!(event.reason, 2);
    assert_eq!(event.endpoint.get(), ENDPOINT);
    assert_eq!(event.address.get(), IOVA);
    assert_eq!(event.pasid.get(), 0);
    let flags = EventFlags::from_bits_retain(event.flags.get());
    assert_eq!(flags, single(EventFlags::READ | EventFlags::WRITE));
    assert_eq!(map(&mut guest, 1, IOVA, 4096, GPA), OK);
    assert_eq!(respond(&mut guest, ENDPOINT, &event, SUCCESS), OK);
    assert!(program.reaches(ENDPOINT, &guest, IOVA, 4096, GPA));
    // Duplicate.
    assert_eq!(respond(&mut guest, ENDPOINT, &event, SUCCESS), NOENT);
}

#[test]
fn every_code_is_an_answer_and_what_is_none_keeps_the_group() {
    let (program, mut guest) = with_page_requests(&[], 8);
    for code in [SUCCESS, INVALID_REQUEST] {
        program.page_request(ENDPOINT, kernel::READ, IOVA);
        let event = guest.page_request();
        assert_eq!(respond(&mut guest, ENDPOINT, &event, 3), INVAL);
        assert_eq!(respond(&mut guest, ENDPOINT, &event, code), OK);
        assert_eq!(respond(&mut guest, ENDPOINT, &event, code), NOENT);
    }
}

#[test]
fn response_failure_turns_page_requests_off_until_the_next_attach() {
    let (program, mut guest) = with_page_requests(&[], 8);
    program.page_request(ENDPOINT, kernel::READ, IOVA);
    program.page_request(ENDPOINT, kernel::READ, IOVA + 4096);
    let events = [guest.page_request(), guest.page_request()];
    assert_eq!(map(&mut guest, 1, IOVA, 4096, GPA), OK);
    assert_eq!(
        respond(&mut guest, ENDPOINT, &events[0], RESPONSE_FAILURE),
        OK
    );
    // The older one is answered with it.
    assert_eq!(respond(&mut guest, ENDPOINT, &events[1], SUCCESS), NOENT);
    program.page_request(ENDPOINT, kernel::READ, IOVA + 8192);
    // It is in its domain all the same.
    assert!(program.reaches(ENDPOINT, &guest, IOVA, 4096, GPA));
    attach(&mut guest, 1, ENDPOINT, ATTACH_PAGE_REQUEST);
    program.page_request(ENDPOINT, kernel::WRITE, IOVA + 3 * 4096);
    let event = guest.page_request();
    assert_eq!(
        event.address.get(),
        IOVA + 3 * 4096,
        "nothing came in between"
    );
    assert_eq!(respond(&mut guest, ENDPOINT, &event, SUCCESS), OK);
}

#[test]
fn a_group_of_a_pasid_is_answered_with_its_pasid_alone() {
    let (program, mut guest) = with_page_requests(&[], 4);
    let flags = PASID | ATTACH_PAGE_REQUEST;
    assert_eq!(
        guest.request(&requests::attach_pasid(2, ENDPOINT, flags, 77)),
        OK
    );
    program.page_request_with(ENDPOINT, 77, kernel::WRITE, IOVA);
    let event = guest.page_request();
    assert_eq!(event.pasid.get(), 77);
    let flags = EventFlags::from_bits_retain(event.flags.get());
    assert_eq!(flags, single(EventFlags::WRITE | EventFlags::PASID));
    let group = event.group_id.get();
    for wrong in [None, Some(78)] {
        assert_eq!(
            guest.request(&requests::page_response(ENDPOINT, wrong, group, SUCCESS)),
            INVAL
        );
    }
    let right = requests::page_response(ENDPOINT, Some(77), group, SUCCESS);
    assert_eq!(guest.request(&right), OK);
    assert_eq!(guest.request(&right), NOENT);
}

#[test]
fn the_detach_of_a_pasid_ends_its_groups_alone() {
    let (program, mut guest) = with_page_requests(&[], 4);
    let flags = PASID | ATTACH_PAGE_REQUEST;
    assert_eq!(
        guest.request(&requests::attach_pasid(2, ENDPOINT, flags, 77)),
        OK
    );
    program.page_request_with(ENDPOINT, 77, kernel::WRITE, IOVA);
    let of_pasid = guest.page_request();
    program.page_request(ENDPOINT, kernel::READ, IOVA);
    let plain = guest.page_request();
    assert_eq!(guest.request(&requests::detach_pasid(2, ENDPOINT, 77)), OK);
    let late = requests::page_response(ENDPOINT, Some(77), of_pasid.group_id.get(), SUCCESS);
    assert_eq!(guest.request(&late), NOENT);
    assert_eq!(program.counter("page_request_withdrawn"), 1);
    assert_eq!(respond(&mut guest, ENDPOINT, &plain, SUCCESS), OK);
}

#[test]
fn an_access_without_page_request_flag_is_a_fault_report() {
    let program = Program::start(&[]);
    let mut guest = program.guest();
    guest.post_events(2, EVENT_LEN, false);
    attach(&mut guest, 1, ENDPOINT, 0);
    program.page_request(ENDPOINT, kernel::WRITE, IOVA);
    let fault = guest.fault();
    assert_eq!(fault.reason, 2);
    assert_eq!(fault.endpoint.get(), ENDPOINT);
    assert_eq!(fault.address.get(), IOVA);
    assert_eq!(program.counter("page_request_unwanted"), 1);
}

#[test]
fn answers_that_name_no_group_of_the_endpoint_touch_nothing() {
    let (program, mut guest) = with_page_requests(&[], 4);
    attach(&mut guest, 1, OTHER, ATTACH_PAGE_REQUEST);
    program.page_request(ENDPOINT, kernel::READ, IOVA);
    let event = guest.page_request();
    // Foreign, never handed out, unknown.
    assert_eq!(respond(&mut guest, OTHER, &event, SUCCESS), NOENT);
    let other_id = event.group_id.get().wrapping_add(1);
    assert_eq!(
        guest.request(&requests::page_response(ENDPOINT, None, other_id, SUCCESS)),
        NOENT
    );
    assert_eq!(respond(&mut guest, 0x999, &event, SUCCESS), NOENT);
    assert_eq!(respond(&mut guest, ENDPOINT, &event, SUCCESS), OK);
}

#[test]
fn a_late_answer_does_not_touch_the_group_that_has_its_cookie_now() {
    let (program, mut guest) = with_page_requests(&[], 4);
    program.page_request(ENDPOINT, kernel::READ, IOVA);
    let old = guest.page_request();
    // The kernel answers the group by itself and has its cookie free again.
    assert_eq!(guest.request(&requests::detach(1, ENDPOINT)), OK);
    attach(&mut guest, 1, ENDPOINT, ATTACH_PAGE_REQUEST);
    program.page_request(ENDPOINT, kernel::WRITE, IOVA + 4096);
    let new = guest.page_request();
    assert_ne!(new.group_id, old.group_id);
    assert_eq!(respond(&mut guest, ENDPOINT, &old, INVALID_REQUEST), NOENT);
    // OK says that the kernel still had it.
    assert_eq!(respond(&mut guest, ENDPOINT, &new, SUCCESS), OK);
}
