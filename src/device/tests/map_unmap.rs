// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! MAP and UNMAP.

use super::fake::{Call, FakeHost};
use super::*;
use crate::host::mapping::IovaRange;
use crate::host::{EndpointProperties, ReservedRegion};
use crate::spec::ResvMemSubtype;

fn attached() -> Bench {
    let bench = Bench::new();
    assert_eq!(bench.attach(7, 1), Status::Ok);
    bench
}

/// Pages `first` to `last`, inclusive.
fn map_pages(bench: &Bench, first: u64, last: u64) -> Status {
    bench.map(
        7,
        first * GRANULE,
        (last + 1) * GRANULE - 1,
        first * GRANULE,
        RW,
    )
}

fn unmap_pages(bench: &Bench, first: u64, last: u64) -> Status {
    bench.unmap(7, first * GRANULE, (last + 1) * GRANULE - 1)
}

fn mapped_pages(bench: &Bench) -> Vec<(u64, u64)> {
    let table = bench.device.mappings(DomainId(7)).unwrap();
    let table: Vec<_> = table
        .iter()
        .map(|m| (m.iova / GRANULE, m.last / GRANULE))
        .collect();
    let host: Vec<_> = bench
        .host
        .mapped(7)
        .iter()
        .map(|m| (m.range.first.0 / GRANULE, m.range.last.0 / GRANULE))
        .collect();
    assert_eq!(table, host, "the table and the host tell different stories");
    table
}

#[test]
fn off_the_granule_is_range__m40_r24() {
    let bench = attached();
    assert_eq!(bench.map(7, 0x10, 0xfff, 0, RW), Status::Range);
    assert_eq!(bench.map(7, 0, 0xffe, 0, RW), Status::Range);
    assert_eq!(bench.map(7, 0, 0xfff, 0x800, RW), Status::Range);
    assert!(mapped_pages(&bench).is_empty());
}

#[test]
fn map_over_existing_mapping_is_inval__m41() {
    let bench = attached();
    map_pages(&bench, 4, 7);
    for (first, last) in [(4, 7), (0, 4), (7, 9), (5, 6), (0, 20)] {
        assert_eq!(map_pages(&bench, first, last), Status::Inval);
    }
    assert_eq!(map_pages(&bench, 0, 3), Status::Ok);
    assert_eq!(map_pages(&bench, 8, 8), Status::Ok);
    assert_eq!(mapped_pages(&bench), [(0, 3), (4, 7), (8, 8)]);
}

#[test]
fn unknown_flags_are_inval__m42_m46() {
    let bench = attached();
    for flags in [1 << 3, 1 << 31 | 1, 4 | 1] {
        assert_eq!(
            bench.map(7, 0, 0xfff, 0, flags),
            Status::Inval,
            "{flags:#x}"
        );
    }
}

#[test]
fn no_such_domain_is_noent__m43_u49() {
    let bench = attached();
    assert_eq!(bench.map(8, 0, 0xfff, 0, RW), Status::NoEnt);
    assert_eq!(bench.unmap(8, 0, 0xfff), Status::NoEnt);
}

#[test]
fn access_goes_by_the_flags__m45() {
    let bench = attached();
    bench.map(7, 0x0000, 0x0fff, 0x10000, READ);
    bench.map(7, 0x1000, 0x1fff, 0x20000, WRITE);
    bench.map(7, 0x2000, 0x2fff, 0x30000, 0);
    assert_eq!(bench.translate(1, 0x0, false), Some(0x10000));
    assert_eq!(bench.translate(1, 0x0, true), None);
    assert_eq!(bench.translate(1, 0x1000, false), None);
    assert_eq!(bench.translate(1, 0x1000, true), Some(0x20000));
    assert_eq!(bench.translate(1, 0x2000, false), None);
    assert_eq!(bench.translate(1, 0x2000, true), None);
    let flags: Vec<_> = bench
        .device
        .mappings(DomainId(7))
        .unwrap()
        .iter()
        .map(|m| m.flags.clone())
        .collect();
    assert_eq!(flags, ["r", "w", ""]);
}

#[test]
fn an_end_at_or_before_the_start_is_inval__m46() {
    let bench = attached();
    assert_eq!(bench.map(7, 0x1000, 0x1000, 0, RW), Status::Inval);
    assert_eq!(bench.map(7, 0x2000, 0xfff, 0, RW), Status::Inval);
    assert_eq!(bench.unmap(7, 0x2000, 0xfff), Status::Inval);
    // One byte is a range for UNMAP.
    assert_eq!(bench.unmap(7, 0x1000, 0x1000), Status::Ok);
}

#[test]
fn a_physical_end_beyond_the_address_space_is_range() {
    let bench = attached();
    assert_eq!(bench.map(7, 0, 0x1fff, !0xfff, RW), Status::Range);
    assert_eq!(bench.map(7, 0, 0xfff, !0xfff, RW), Status::Ok);
}

#[test]
fn the_whole_address_space_is_one_mapping__m40() {
    let bench = attached();
    assert_eq!(bench.map(7, 0, u64::MAX, 0, RW), Status::Ok);
    assert_eq!(bench.device.status().domains[0].bytes, u64::MAX);
    assert_eq!(bench.unmap(7, 0, u64::MAX), Status::Ok);
    assert_eq!(mapped_pages(&bench), []);
}

#[test]
fn map_over_a_reserved_region_of_an_attached_endpoint_is_inval__v62() {
    let host = FakeHost::new(&[1]);
    host.set_endpoint(
        2,
        EndpointProperties {
            reserved: vec![ReservedRegion {
                range: IovaRange::new(0x4000, 0x5fff).unwrap(),
                subtype: ResvMemSubtype::Msi,
            }],
            ..Default::default()
        },
    );
    let bench = Bench::with(DeviceConfig::default(), host);
    bench.attach(7, 1);
    assert_eq!(map_pages(&bench, 4, 4), Status::Ok);
    assert_eq!(unmap_pages(&bench, 4, 4), Status::Ok);
    bench.attach(7, 2);
    for (first, last) in [(4, 4), (5, 5), (3, 4), (5, 6), (0, 9)] {
        assert_eq!(map_pages(&bench, first, last), Status::Inval);
    }
    assert_eq!(map_pages(&bench, 3, 3), Status::Ok);
    assert_eq!(map_pages(&bench, 6, 6), Status::Ok);
    bench.detach(7, 2);
    assert_eq!(map_pages(&bench, 4, 5), Status::Ok);
}

#[test]
fn mappings_over_the_quota_are_nomem() {
    let config = DeviceConfig {
        max_mappings: 2,
        ..DeviceConfig::default()
    };
    let bench = Bench::with(config, FakeHost::new(&[1, 2]));
    bench.attach(7, 1);
    bench.attach(8, 2);
    assert_eq!(map_pages(&bench, 0, 0), Status::Ok);
    assert_eq!(bench.map(8, 0, 0xfff, 0, RW), Status::Ok);
    assert_eq!(map_pages(&bench, 1, 1), Status::NoMem);
    assert_eq!(map_pages(&bench, 0, 0), Status::Inval);
    assert_eq!(unmap_pages(&bench, 0, 0), Status::Ok);
    assert_eq!(map_pages(&bench, 1, 1), Status::Ok);
    // The end of a domain frees its mappings too.
    bench.detach(8, 2);
    assert_eq!(map_pages(&bench, 2, 2), Status::Ok);
    assert_eq!(map_pages(&bench, 3, 3), Status::NoMem);
}

#[test]
fn a_failed_map_leaves_no_mapping() {
    let bench = attached();
    bench.host.fail(Some(Call::Map));
    assert_eq!(map_pages(&bench, 0, 0), Status::NoMem);
    bench.host.fail(None);
    assert_eq!(mapped_pages(&bench), []);
    assert_eq!(map_pages(&bench, 0, 0), Status::Ok);
    assert_eq!(bench.device.counters().map_failed.get(), 1);
}

#[test]
fn unmap_with_reserved_bytes_is_inval_and_removes_nothing__u48() {
    let bench = attached();
    map_pages(&bench, 0, 0);
    let mut bytes = unmap_bytes(7, 0, 0xfff);
    bytes[24] = 1;
    assert_eq!(bench.status(&bytes), Status::Inval);
    assert_eq!(mapped_pages(&bench), [(0, 0)]);
}

#[test]
fn unmap_truth_table__u51_u52() {
    type Case = (
        &'static [(u64, u64)],
        (u64, u64),
        Status,
        &'static [(u64, u64)],
    );
    let cases: [Case; 7] = [
        (&[], (0, 4), Status::Ok, &[]),
        (&[(0, 9)], (0, 9), Status::Ok, &[]),
        (&[(0, 4), (5, 9)], (0, 9), Status::Ok, &[]),
        (&[(0, 9)], (0, 4), Status::Range, &[(0, 9)]),
        (&[(0, 4), (5, 9)], (0, 4), Status::Ok, &[(5, 9)]),
        (&[(0, 4)], (0, 9), Status::Ok, &[]),
        (&[(0, 4), (10, 14)], (0, 14), Status::Ok, &[]),
    ];
    for joins in [true, false] {
        for (index, (mappings, unmap, status, left)) in cases.iter().enumerate() {
            let host = FakeHost::new(&[1]);
            let host = if joins { host } else { host.without_joining() };
            let bench = Bench::with(DeviceConfig::default(), host);
            bench.attach(7, 1);
            for &(first, last) in *mappings {
                assert_eq!(map_pages(&bench, first, last), Status::Ok);
            }
            assert_eq!(
                unmap_pages(&bench, unmap.0, unmap.1),
                *status,
                "case {index}"
            );
            assert_eq!(mapped_pages(&bench), *left, "case {index}");
        }
    }
}

#[test]
fn a_split_in_the_middle_removes_none_of_the_others__u51() {
    let bench = attached();
    map_pages(&bench, 0, 1);
    map_pages(&bench, 2, 5);
    assert_eq!(unmap_pages(&bench, 0, 3), Status::Range);
    assert_eq!(unmap_pages(&bench, 1, 5), Status::Range);
    assert_eq!(mapped_pages(&bench), [(0, 1), (2, 5)]);
}

#[test]
fn unmap_knows_neither_input_range_nor_granule__u52() {
    let config = DeviceConfig {
        input_range: IovaRange::new(0, 0xffff).unwrap(),
        ..DeviceConfig::default()
    };
    let bench = Bench::with(config, FakeHost::new(&[1]));
    bench.attach(7, 1);
    map_pages(&bench, 2, 2);
    assert_eq!(bench.unmap(7, 0x10_0001, 0x10_0002), Status::Ok);
    assert_eq!(bench.unmap(7, 0x1801, u64::MAX), Status::Ok);
    assert_eq!(mapped_pages(&bench), []);
}

fn unmap_page(page: u64) -> (Vec<u8>, usize) {
    (unmap_bytes(7, page * GRANULE, (page + 1) * GRANULE - 1), 4)
}

#[test]
fn consecutive_unmaps_of_a_batch_reach_the_host_as_one_call() {
    let bench = attached();
    for page in 0..8 {
        map_pages(&bench, page, page);
    }
    bench.host.unmaps();
    // Ascending, descending, with an empty one between.
    let order = [2, 3, 1, 50, 0];
    let replies = bench.batch(&order.map(unmap_page));
    assert_eq!(replies, [Reply::Status(Status::Ok); 5]);
    let calls = bench.host.unmaps();
    assert_eq!(
        calls,
        [(DomainId(7), IovaRange::new(0, 4 * GRANULE - 1).unwrap())]
    );
    assert_eq!(mapped_pages(&bench), [(4, 4), (5, 5), (6, 6), (7, 7)]);
}

#[test]
fn unmaps_are_not_joined_over_a_live_mapping() {
    let bench = attached();
    for page in 0..5 {
        map_pages(&bench, page, page);
    }
    bench.host.unmaps();
    let replies = bench.batch(&[0, 2, 4, 3].map(unmap_page));
    assert_eq!(replies, [Reply::Status(Status::Ok); 4]);
    assert_eq!(bench.host.unmaps().len(), 3);
    assert_eq!(mapped_pages(&bench), [(1, 1)]);
}

#[test]
fn a_request_after_unmaps_sees_them_done() {
    let bench = attached();
    map_pages(&bench, 0, 0);
    map_pages(&bench, 1, 1);
    let replies = bench.batch(&[
        unmap_page(0),
        unmap_page(1),
        (map_bytes(7, 0, 2 * GRANULE - 1, 0, RW), 4),
        unmap_page(9),
    ]);
    assert_eq!(replies, [Reply::Status(Status::Ok); 4]);
    assert_eq!(mapped_pages(&bench), [(0, 1)]);
}

#[test]
fn a_failed_unmap_is_told_to_every_joined_request_and_undone() {
    let bench = attached();
    for page in 0..4 {
        map_pages(&bench, page, page);
    }
    bench.host.fail(Some(Call::Unmap));
    let replies = bench.batch(&[unmap_page(0), unmap_page(1), unmap_page(9)]);
    bench.host.fail(None);
    assert_eq!(replies[..2], [Reply::Status(Status::NoMem); 2]);
    assert_eq!(mapped_pages(&bench), [(0, 0), (1, 1), (2, 2), (3, 3)]);
    assert_eq!(bench.device.counters().unmap_failed.get(), 2);
    // The quota counts them again.
    assert_eq!(unmap_pages(&bench, 0, 3), Status::Ok);
    assert_eq!(mapped_pages(&bench), []);
}

#[test]
fn an_unmap_of_what_the_host_has_lost_is_an_error_and_leaves_no_mapping() {
    let bench = attached();
    map_pages(&bench, 0, 0);
    bench.host.fail(Some(Call::UnmapAll));
    assert_eq!(unmap_pages(&bench, 0, 0), Status::DevErr);
    bench.host.fail(None);
    assert_eq!(bench.device.counters().host_errors.get(), 1);
    assert_eq!(mapped_pages(&bench), []);
    // Neither in the table nor in the quota.
    assert_eq!(map_pages(&bench, 0, 0), Status::Ok);
    assert_eq!(unmap_pages(&bench, 0, 0), Status::Ok);
}

#[test]
fn a_batch_that_is_dropped_is_settled() {
    let bench = attached();
    map_pages(&bench, 0, 0);
    let mut batch = bench.device.requests();
    let (bytes, writable) = unmap_page(0);
    assert_eq!(
        batch.execute(&bytes, bytes.len(), writable).reply,
        Reply::Joined
    );
    drop(batch);
    assert_eq!(mapped_pages(&bench), []);
}

#[test]
fn nothing_is_reached_through_a_reserved_region__v63() {
    let host = FakeHost::new(&[1]);
    host.set_endpoint(
        2,
        EndpointProperties {
            reserved: vec![ReservedRegion {
                range: IovaRange::new(0x4000, 0x5fff).unwrap(),
                subtype: ResvMemSubtype::Reserved,
            }],
            ..Default::default()
        },
    );
    let bench = Bench::with(DeviceConfig::default(), host);
    bench.attach(7, 2);
    assert_eq!(map_pages(&bench, 0, 9), Status::Inval);
    assert_eq!(map_pages(&bench, 0, 3), Status::Ok);
    for address in [0x4000, 0x5fff] {
        assert_eq!(bench.translate(2, address, false), None);
        assert_eq!(bench.translate(2, address, true), None);
    }
    assert_eq!(bench.translate(2, 0x3fff, true), Some(0x3fff));
}

#[test]
fn a_domain_knows_its_bytes() {
    let bench = Bench::new();
    bench.attach(7, 1);
    let bytes = || bench.device.status().domains[0].bytes;
    assert_eq!(bytes(), 0);
    bench.map(7, 0, 0xfff, 0, RW);
    bench.map(7, 0x2000, 0x4fff, 0, RW);
    bench.map(7, 0x8000, 0x8fff, 0, RW);
    assert_eq!(bytes(), 0x5000);
    // Overlaps and splits change nothing.
    bench.map(7, 0x4000, 0x5fff, 0, RW);
    bench.unmap(7, 0x3000, 0x3fff);
    assert_eq!(bytes(), 0x5000);
    bench.unmap(7, 0, 0x7fff);
    assert_eq!(bytes(), 0x1000);
    bench.host.fail(Some(Call::Unmap));
    bench.unmap(7, 0x8000, 0x8fff);
    bench.host.fail(Some(Call::Map));
    bench.map(7, 0x9000, 0x9fff, 0, RW);
    assert_eq!(bytes(), 0x1000);
    bench.host.fail(None);
    bench.unmap(7, 0x8000, 0x8fff);
    assert_eq!(bytes(), 0);
    // One more than the number has room for.
    assert_eq!(bench.map(7, 0, u64::MAX, 0, RW), Status::Ok);
    assert_eq!(bytes(), u64::MAX);
}

#[test]
fn mappings_are_listed_from_an_address_on() {
    let count = if cfg!(miri) { 20 } else { 3000 };
    let bench = Bench::new();
    bench.attach(7, 1);
    bench.attach_with(8, 2, BYPASS);
    for page in 0..count {
        bench.map(7, page << 13, (page << 13) + 0xfff, 0, RW);
    }
    let from = |first, at_most| -> Option<Vec<u64>> {
        let found = bench
            .device
            .mappings_from(DomainId(7), Iova(first), at_most)?;
        Some(found.iter().map(|mapping| mapping.iova).collect())
    };
    assert_eq!(from(0, 2), Some(vec![0, 0x2000]));
    // In the middle of one, between two, behind the last.
    assert_eq!(from(0x2800, 2), Some(vec![0x2000, 0x4000]));
    assert_eq!(from(0x3000, 2), Some(vec![0x4000, 0x6000]));
    assert_eq!(from((count - 1) << 13, 2), Some(vec![(count - 1) << 13]));
    assert_eq!(from(count << 13, 2), Some(vec![]));
    assert_eq!(from(0, 0), Some(vec![]));
    let none = bench.device.mappings_from(DomainId(8), Iova(0), 9);
    assert_eq!(none.map(|found| found.len()), Some(0));
    assert!(
        bench
            .device
            .mappings_from(DomainId(9), Iova(0), 9)
            .is_none()
    );
    let all = bench.device.mappings(DomainId(7)).unwrap();
    assert!((0..count).eq(all.iter().map(|mapping| mapping.iova >> 13)));
    assert!(bench.device.mappings(DomainId(9)).is_none());
}
