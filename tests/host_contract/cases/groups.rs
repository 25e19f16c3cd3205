// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Page requests and their answers.

use super::*;
use std::collections::BTreeSet;

const READ: EventFlags = EventFlags::READ;
const WRITE: EventFlags = EventFlags::WRITE;

fn reporting_endpoint<B: Bench>() -> (B, Domain) {
    let bench = B::with_memory();
    bench.add_endpoint(1);
    let domain = bench.domain(1);
    bench.attach(1, reported(&domain)).unwrap();
    (bench, domain)
}

/// The one group that has come.
fn group<B: Bench>(bench: &B) -> PageRequestGroup {
    let mut groups = bench.groups();
    assert_eq!(groups.len(), 1, "{groups:?}");
    groups.remove(0)
}

pub fn a_page_request_is_told_and_its_answer_accepted_once<B: Bench>() {
    let (bench, domain) = reporting_endpoint::<B>();
    assert!(bench.groups().is_empty());
    bench.raise(plain(1), READ | WRITE, IOVA + 0x123);
    let group = group(&bench);
    assert_eq!(group.requester, plain(1));
    let [page] = group.pages[..] else {
        panic!("{group:?}");
    };
    // A host may know the page only.
    assert_eq!(page.address.0 & !0xfff, IOVA);
    assert_eq!(page.access, READ | WRITE);
    bench.map(&domain, IOVA, MIB, 16 * MIB).unwrap();
    bench.host().respond(group.cookie, Answer::Success).unwrap();
    assert!(bench.is_dead(group.cookie));
    assert!(bench.is_dead(Cookie(u64::MAX)));
}

pub fn groups_are_answered_in_any_order<B: Bench>() {
    const GROUPS: u64 = 1000;
    let (bench, _domain) = reporting_endpoint::<B>();
    for index in 0..GROUPS {
        bench.raise(plain(1), READ, IOVA + index * 4096);
    }
    let mut groups = bench.groups();
    assert_eq!(groups.len() as u64, GROUPS);
    let pages = groups.iter().map(|group| group.pages[0].address.0);
    assert!(pages.is_sorted(), "oldest first");
    let cookies: BTreeSet<_> = groups.iter().map(|group| group.cookie).collect();
    assert_eq!(cookies.len() as u64, GROUPS);
    // A fixed order without a pattern.
    groups.sort_by_key(|group| group.cookie.0.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    for (index, group) in groups.iter().enumerate() {
        let answer = match index % 3 {
            0 => Answer::Invalid,
            1 => Answer::ResponseFailure,
            _ => Answer::Success,
        };
        bench.host().respond(group.cookie, answer).unwrap();
    }
    assert!(groups.iter().all(|group| bench.is_dead(group.cookie)));
}

pub fn a_move_ends_the_groups_of_the_requester_and_no_others<B: Bench>() {
    let (bench, domain) = reporting_endpoint::<B>();
    bench.add_endpoint(2);
    let requesters = [plain(1), with_pasid(1, 4), plain(2)];
    for requester in &requesters[1..] {
        bench.host().attach(*requester, reported(&domain)).unwrap();
    }
    for requester in requesters {
        bench.raise(requester, READ, IOVA);
    }
    let groups = bench.groups();
    let cookies = requesters.map(|requester| {
        let found = groups.iter().find(|group| group.requester == requester);
        found.unwrap().cookie
    });
    for index in [0, 1] {
        bench
            .host()
            .attach(requesters[index], Attachment::Blocked)
            .unwrap();
        assert!(bench.is_dead(cookies[index]));
    }
    bench.host().respond(cookies[2], Answer::Success).unwrap();
}

pub fn a_group_that_was_not_read_before_the_move_never_comes<B: Bench>() {
    let (bench, domain) = reporting_endpoint::<B>();
    bench.raise(plain(1), READ, IOVA);
    bench.attach(1, Attachment::Blocked).unwrap();
    assert!(bench.groups().is_empty());
    bench.attach(1, reported(&domain)).unwrap();
    assert!(bench.groups().is_empty());
}

pub fn page_requests_that_are_no_longer_wanted_are_answered<B: Bench>() {
    let (bench, domain) = reporting_endpoint::<B>();
    bench.raise(plain(1), READ, IOVA);
    let cookie = group(&bench).cookie;
    bench.attach(1, unwanted(&domain)).unwrap();
    assert!(bench.is_dead(cookie));
    // New ones are still told, for the device to refuse.
    bench.raise(plain(1), READ, IOVA);
    let refused = group(&bench).cookie;
    bench.host().respond(refused, Answer::Invalid).unwrap();
}

pub fn attaching_to_what_it_is_attached_to_keeps_the_groups<B: Bench>() {
    let (bench, domain) = reporting_endpoint::<B>();
    bench.raise(plain(1), READ, IOVA);
    let cookie = group(&bench).cookie;
    bench.attach(1, reported(&domain)).unwrap();
    bench.host().respond(cookie, Answer::Success).unwrap();
}

pub fn an_endpoint_that_is_off_or_in_bypass_raises_none<B: Bench>() {
    let (bench, domain) = reporting_endpoint::<B>();
    for place in [
        in_domain(&domain, PageRequests::Off),
        Attachment::Bypass,
        Attachment::Blocked,
    ] {
        bench.attach(1, reported(&domain)).unwrap();
        bench.raise(plain(1), READ, IOVA);
        let cookie = group(&bench).cookie;
        bench.attach(1, place).unwrap();
        assert!(bench.is_dead(cookie), "{place:?}");
        bench.raise(plain(1), READ, IOVA);
        assert!(bench.groups().is_empty(), "{place:?}");
    }
}

pub fn a_group_carries_its_pasid<B: Bench>() {
    let (bench, domain) = reporting_endpoint::<B>();
    let last = with_pasid(1, 0xf_ffff);
    bench.host().attach(last, reported(&domain)).unwrap();
    bench.raise(last, WRITE, IOVA);
    let group = group(&bench);
    assert_eq!(group.requester, last);
    assert_eq!(group.pages[0].address.0, IOVA);
    bench.host().respond(group.cookie, Answer::Success).unwrap();
    // A PASID that is attached nowhere asks no driver.
    bench.raise(with_pasid(1, 6), WRITE, IOVA);
    assert!(bench.groups().is_empty());
}

pub fn removing_an_endpoint_ends_its_groups<B: Bench>() {
    let (bench, _domain) = reporting_endpoint::<B>();
    bench.raise(plain(1), READ, IOVA);
    let cookie = group(&bench).cookie;
    bench.host().remove_endpoint(EndpointId(1));
    assert!(bench.is_dead(cookie));
}

pub fn a_descriptor_is_readable_while_there_is_something<B: Bench>() {
    let (bench, _domain) = reporting_endpoint::<B>();
    let fds = bench.host().event_fds();
    let is_readable = || {
        let mut polls: Vec<_> = fds
            .iter()
            .map(|&fd| libc::pollfd {
                fd,
                events: libc::POLLIN,
                revents: 0,
            })
            .collect();
        // SAFETY: the elements are ours, and so many.
        unsafe { libc::poll(polls.as_mut_ptr(), polls.len() as libc::nfds_t, 0) > 0 }
    };
    assert!(!is_readable());
    bench.raise(plain(1), READ, IOVA);
    assert!(is_readable());
    bench.groups();
    assert!(!is_readable());
}
