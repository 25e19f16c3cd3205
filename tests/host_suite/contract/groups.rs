// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Page requests and their answers.

use super::*;
use crate::kernel::{READ, WRITE};
use std::collections::BTreeSet;
use vhost_device_iommu::host::{Answer, Cookie};
use vhost_device_iommu::spec::EventFlags;

const IOVA: u64 = 0x4000_0000;

fn reporting_endpoint() -> (Bench, MockDevice, Domain) {
    let bench = Bench::with_memory();
    let device = bench.endpoint(1);
    let domain = bench.domain(1);
    bench.attach(1, reported(&domain)).unwrap();
    (bench, device, domain)
}

fn is_dead(bench: &Bench, cookie: Cookie) -> bool {
    matches!(
        bench.host.respond(cookie, Answer::Success),
        Err(HostError::NoGroup(dead)) if dead == cookie
    )
}

#[test]
fn a_page_request_is_told_and_its_answer_accepted_once() {
    let (bench, device, domain) = reporting_endpoint();
    assert!(bench.groups().is_empty());
    bench
        .kernel
        .page_request(device, 0, 3, READ | WRITE, IOVA + 0x123);
    let groups = bench.groups();
    let [group] = &groups[..] else {
        panic!("{groups:?}");
    };
    assert_eq!(group.requester, plain(1));
    let [page] = group.pages[..] else {
        panic!("{group:?}");
    };
    // The kernel tells the page.
    assert_eq!(page.address.0 & !0xfff, IOVA);
    assert_eq!(page.access, EventFlags::READ | EventFlags::WRITE);
    bench.map(&domain, IOVA, MIB, 16 * MIB).unwrap();
    bench.host.respond(group.cookie, Answer::Success).unwrap();
    assert!(is_dead(&bench, group.cookie));
    assert!(is_dead(&bench, Cookie(u64::MAX)));
}

#[test]
fn groups_are_answered_in_any_order() {
    let (bench, device, _) = reporting_endpoint();
    for group in 0..1000 {
        let iova = IOVA + u64::from(group) * 4096;
        bench
            .kernel
            .page_request(device, 0, group % 512, READ, iova);
    }
    let mut groups = bench.groups();
    assert_eq!(groups.len(), 1000);
    let pages: Vec<_> = groups
        .iter()
        .map(|group| group.pages[0].address.0)
        .collect();
    assert!(pages.is_sorted(), "oldest first");
    let cookies: BTreeSet<_> = groups.iter().map(|group| group.cookie).collect();
    assert_eq!(cookies.len(), 1000);
    // A fixed order without a pattern.
    groups.sort_by_key(|group| group.cookie.0.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    for (index, group) in groups.iter().enumerate() {
        let answer = if index % 3 == 0 {
            Answer::Invalid
        } else {
            Answer::Success
        };
        bench.host.respond(group.cookie, answer).unwrap();
    }
    assert!(groups.iter().all(|group| is_dead(&bench, group.cookie)));
}

#[test]
fn a_move_ends_the_groups_of_the_requester_and_no_others() {
    let (bench, device, domain) = reporting_endpoint();
    let other = bench.endpoint(2);
    bench.attach(2, reported(&domain)).unwrap();
    bench
        .host
        .attach(with_pasid(1, 4), reported(&domain))
        .unwrap();
    bench.kernel.page_request(device, 0, 1, READ, IOVA);
    bench.kernel.page_request(device, 4, 2, READ, IOVA);
    bench.kernel.page_request(other, 0, 3, READ, IOVA);
    let groups = bench.groups();
    let cookie = |requester| {
        let found = groups.iter().find(|group| group.requester == requester);
        found.unwrap().cookie
    };
    bench.attach(1, Attachment::Blocked).unwrap();
    assert!(is_dead(&bench, cookie(plain(1))));
    bench
        .host
        .attach(with_pasid(1, 4), Attachment::Blocked)
        .unwrap();
    assert!(is_dead(&bench, cookie(with_pasid(1, 4))));
    bench
        .host
        .respond(cookie(plain(2)), Answer::Success)
        .unwrap();
}

#[test]
fn a_group_that_was_not_read_before_the_move_never_comes() {
    let (bench, device, domain) = reporting_endpoint();
    bench.kernel.page_request(device, 0, 1, READ, IOVA);
    bench.attach(1, Attachment::Blocked).unwrap();
    assert!(bench.groups().is_empty());
    bench.attach(1, reported(&domain)).unwrap();
    assert!(bench.groups().is_empty());
}

#[test]
fn a_cookie_used_again_belongs_to_the_new_group_alone() {
    let (bench, device, domain) = reporting_endpoint();
    bench.kernel.page_request(device, 0, 1, READ, IOVA);
    let old = bench.groups()[0].cookie;
    let elsewhere = bench.domain(2);
    bench.attach(1, reported(&elsewhere)).unwrap();
    assert!(is_dead(&bench, old));
    bench.kernel.page_request(device, 0, 1, WRITE, IOVA + 4096);
    let new = bench.groups()[0].cookie;
    assert_eq!(new, old, "the kernel hands out the lowest free cookie");
    bench.host.respond(new, Answer::Invalid).unwrap();
    assert!(is_dead(&bench, new));
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
    assert!(is_dead(&bench, cookie));
    // The kernel has forgotten it too: its cookie is free.
    bench.kernel.page_request(device, 0, 2, READ, IOVA);
    assert_eq!(
        bench.groups()[0].cookie,
        cookie,
        "still told, for the device to refuse"
    );
}

#[test]
fn attaching_to_what_it_is_attached_to_keeps_the_groups() {
    let (bench, device, domain) = reporting_endpoint();
    bench.kernel.page_request(device, 0, 1, READ, IOVA);
    let cookie = bench.groups()[0].cookie;
    bench.attach(1, reported(&domain)).unwrap();
    bench.host.respond(cookie, Answer::Success).unwrap();
}

#[test]
fn an_endpoint_that_is_off_or_in_bypass_raises_none() {
    let (bench, device, domain) = reporting_endpoint();
    for place in [
        in_domain(&domain, PageRequests::Off),
        Attachment::Bypass,
        Attachment::Blocked,
    ] {
        bench.attach(1, reported(&domain)).unwrap();
        bench.kernel.page_request(device, 0, 1, READ, IOVA);
        let cookie = bench.groups()[0].cookie;
        bench.attach(1, place).unwrap();
        assert!(is_dead(&bench, cookie), "{place:?}");
        bench.kernel.page_request(device, 0, 1, READ, IOVA);
        assert!(bench.groups().is_empty(), "{place:?}");
    }
}

#[test]
fn a_group_carries_its_pasid() {
    let (bench, device, domain) = reporting_endpoint();
    bench
        .host
        .attach(with_pasid(1, 0xf_ffff), reported(&domain))
        .unwrap();
    bench.kernel.page_request(device, 0xf_ffff, 9, WRITE, IOVA);
    let groups = bench.groups();
    assert_eq!(groups[0].requester, with_pasid(1, 0xf_ffff));
    assert_eq!(groups[0].pages[0].address, iova(IOVA));
    bench
        .host
        .respond(groups[0].cookie, Answer::Success)
        .unwrap();
    // A PASID that is attached nowhere is answered by the kernel.
    bench.kernel.page_request(device, 6, 9, WRITE, IOVA);
    assert!(bench.groups().is_empty());
}

#[test]
fn removing_an_endpoint_ends_its_groups() {
    let (bench, device, _) = reporting_endpoint();
    bench.kernel.page_request(device, 0, 1, READ, IOVA);
    let cookie = bench.groups()[0].cookie;
    bench.host.remove_endpoint(EndpointId(1));
    assert!(is_dead(&bench, cookie));
}

#[test]
fn the_descriptor_is_readable_while_there_is_something() {
    let (bench, device, _) = reporting_endpoint();
    let [fd] = bench.host.event_fds()[..] else {
        panic!("one fault queue");
    };
    let readable = || {
        let mut poll = libc::pollfd {
            fd,
            events: libc::POLLIN,
            revents: 0,
        };
        // SAFETY: one element, on the stack.
        unsafe { libc::poll(&mut poll, 1, 0) == 1 }
    };
    assert!(!readable());
    bench.kernel.page_request(device, 0, 1, READ, IOVA);
    assert!(readable());
    bench.groups();
    assert!(!readable());
}
