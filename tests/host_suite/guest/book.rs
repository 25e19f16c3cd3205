// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Many groups, no buffers, quota and time-out.

use super::*;
use crate::common::GuestOptions;
use crate::kernel;
use std::collections::BTreeSet;

#[test]
fn a_thousand_groups_are_outstanding_and_answered_in_any_order() {
    const GROUPS: u64 = 1000;
    let program = Program::start(&["--page-response-timeout", "0"]);
    let mut guest = program.guest_with(&GuestOptions {
        queue_size: 1024,
        ..Default::default()
    });
    guest.post_events(GROUPS as usize, EVENT_LEN, false);
    attach(&mut guest, 1, ENDPOINT, ATTACH_PAGE_REQUEST);
    for index in 0..GROUPS {
        program.page_request(ENDPOINT, kernel::READ, IOVA + index * 4096);
    }
    let mut events: Vec<_> = (0..GROUPS).map(|_| guest.page_request()).collect();
    for (index, event) in events.iter().enumerate() {
        assert_eq!(event.address.get(), IOVA + index as u64 * 4096, "in order");
    }
    let ids: BTreeSet<_> = events.iter().map(|event| event.group_id.get()).collect();
    assert_eq!(ids.len() as u64, GROUPS);
    // A fixed order without a pattern.
    events.sort_by_key(|event| event.address.get().wrapping_mul(0x9e37_79b9_7f4a_7c15));
    for (index, event) in events.iter().enumerate() {
        let code = [SUCCESS, INVALID_REQUEST][index % 2];
        assert_eq!(respond(&mut guest, ENDPOINT, event, code), OK);
    }
    for event in &events {
        assert_eq!(respond(&mut guest, ENDPOINT, event, SUCCESS), NOENT);
    }
}

#[test]
fn without_event_buffers_groups_are_held_and_none_is_lost() {
    let (program, mut guest) = with_page_requests(&["--page-response-timeout", "0"], 0);
    for index in 0..10 {
        program.page_request(ENDPOINT, kernel::READ, IOVA + index * 4096);
    }
    program.wait_for_counter("page_request_groups", 10);
    assert!(guest.poll_event().is_none());
    let mut seen = 0;
    for buffers in [1, 3, 8] {
        guest.post_events(buffers, EVENT_LEN, true);
        for _ in 0..buffers.min(10 - seen) {
            let event = guest.page_request();
            assert_eq!(event.address.get(), IOVA + seen as u64 * 4096);
            assert_eq!(respond(&mut guest, ENDPOINT, &event, SUCCESS), OK);
            seen += 1;
        }
    }
    assert_eq!(seen, 10);
}

#[test]
fn groups_beyond_the_quota_are_refused_and_counted() {
    let (program, mut guest) = with_page_requests(&["--max-page-requests", "4"], 16);
    for index in 0..6 {
        program.page_request(ENDPOINT, kernel::READ, IOVA + index * 4096);
    }
    let events: Vec<_> = (0..4).map(|_| guest.page_request()).collect();
    program.wait_for_counter("page_request_over_quota", 2);
    for event in &events {
        assert_eq!(respond(&mut guest, ENDPOINT, event, SUCCESS), OK);
    }
    program.page_request(ENDPOINT, kernel::READ, IOVA + MIB);
    assert_eq!(guest.page_request().address.get(), IOVA + MIB);
}

#[test]
fn a_group_that_nobody_answers_times_out() {
    let (program, mut guest) = with_page_requests(&["--page-response-timeout", "1"], 4);
    program.page_request(ENDPOINT, kernel::READ, IOVA);
    let old = guest.page_request();
    program.wait_for_counter("page_request_timeouts", 1);
    program.page_request(ENDPOINT, kernel::READ, IOVA + 4096);
    let new = guest.page_request();
    assert_eq!(respond(&mut guest, ENDPOINT, &old, SUCCESS), NOENT);
    assert_eq!(respond(&mut guest, ENDPOINT, &new, SUCCESS), OK);
}

#[test]
fn an_endpoint_without_buffers_does_not_lose_to_another() {
    let (program, mut guest) = with_page_requests(&["--page-response-timeout", "0"], 0);
    attach(&mut guest, 2, OTHER, ATTACH_PAGE_REQUEST);
    for index in 0..4 {
        program.page_request(ENDPOINT, kernel::READ, IOVA + index * 4096);
    }
    program.page_request(OTHER, kernel::READ, IOVA);
    program.wait_for_counter("page_request_groups", 5);
    guest.post_events(5, EVENT_LEN, true);
    let mut endpoints: Vec<_> = (0..5)
        .map(|_| guest.page_request().endpoint.get())
        .collect();
    endpoints.sort_unstable();
    assert_eq!(endpoints, [ENDPOINT, ENDPOINT, ENDPOINT, ENDPOINT, OTHER]);
}
