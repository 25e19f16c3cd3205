// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What holds for every request.

use zerocopy::IntoBytes;

use super::*;

#[test]
fn without_room_for_a_tail_nothing_is_written__r15() {
    let bench = Bench::new();
    let attach = attach_bytes(7, 1, 0, 0);
    for writable in 0..4 {
        assert_eq!(bench.raw(attach.as_bytes(), writable), Reply::Unwritten);
    }
    assert!(bench.device.status().domains.is_empty());
}

#[test]
fn an_unknown_type_is_returned_unwritten__r16() {
    let bench = Bench::new();
    for kind in [0, 9, 10, 255] {
        let mut bytes = attach_bytes(7, 1, 0, 0).as_bytes().to_vec();
        bytes[0] = kind;
        assert_eq!(bench.raw(&bytes, 4), Reply::Unwritten, "type {kind}");
    }
}

#[test]
fn fewer_readable_bytes_than_a_head_are_returned_unwritten__r15() {
    let bench = Bench::new();
    for len in 0..4 {
        assert_eq!(bench.raw(&[1, 0, 0, 0][..len], 4), Reply::Unwritten);
    }
}

#[test]
fn a_known_type_of_the_wrong_length_is_inval() {
    let bench = Bench::new();
    bench.attach(7, 1);
    let requests = [
        attach_bytes(7, 2, 0, 0).as_bytes().to_vec(),
        map_bytes(7, 0, 0xfff, 0, RW),
        unmap_bytes(7, 0, 0xfff),
        attach_table_bytes(8, 2, 0, 0, 0x1000).as_bytes().to_vec(),
        invalidate_bytes(7, 0, 0xfff).as_bytes().to_vec(),
        probe_bytes(1),
        response_bytes(1, 0, 0, 0, 0).as_bytes().to_vec(),
    ];
    for request in requests {
        let shorter = &request[..request.len() - 1];
        assert_eq!(bench.raw(shorter, 4), Reply::Status(Status::Inval));
        let mut longer = request.clone();
        longer.push(0);
        assert_eq!(bench.raw(&longer, 4), Reply::Status(Status::Inval));
        longer.resize(5000, 0);
        assert_eq!(bench.raw(&longer, 4), Reply::Status(Status::Inval));
    }
}

#[test]
fn map_and_unmap_do_not_exist_without_their_feature__m47() {
    let bench = Bench::new();
    bench.attach(7, 1);
    bench.negotiate_without(Features::MAP_UNMAP);
    assert_eq!(
        bench.raw(&map_bytes(7, 0, 0xfff, 0, RW), 4),
        Reply::Unwritten
    );
    assert_eq!(bench.raw(&unmap_bytes(7, 0, 0xfff), 4), Reply::Unwritten);
}

#[test]
fn page_response_does_not_exist_without_its_feature__r16_x62() {
    let bench = Bench::new();
    bench.negotiate_without(Features::PAGE_REQUEST);
    let response = response_bytes(1, 0, 0, 0, 0);
    assert_eq!(bench.raw(response.as_bytes(), 4), Reply::Unwritten);
}

#[test]
fn success_is_status_ok_and_is_counted__r20() {
    let bench = Bench::new();
    assert_eq!(bench.attach(7, 1), Status::Ok);
    assert_eq!(bench.attach(7, 99), Status::NoEnt);
    assert_eq!(bench.raw(&[9, 0, 0, 0], 4), Reply::Unwritten);
    let counters = bench.device.counters();
    assert_eq!(counters.requests.get(), 3);
    assert_eq!(counters.requests_failed.get(), 1);
    assert_eq!(counters.requests_unwritten.get(), 1);
    assert_eq!(counters.attach.get(), 1);
}
