// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! ATTACH_TABLE and INVALIDATE (draft 2): what the device decides. What a host does with a table is its own tests' matter.

use zerocopy::little_endian::{U16, U32, U64};

use super::fake::{Call, Did, FakeHost, FakeQueue};
use super::*;
use crate::host::mapping::IovaRange;
use crate::host::table::{Table, TableSupport};
use crate::host::{Answer, Attachment, EndpointProperties, PageRequests, ReservedRegion};
use crate::spec::{AttachTable, ResvMemSubtype};

const R: EventFlags = EventFlags::READ;
const ROOT: u64 = 0x7000;
const OTHER: u64 = 0x9000;
/// No release of tables.
const NONE: [Vec<DomainId>; 0] = [];

fn range(first: u64, last: u64) -> IovaRange {
    IovaRange::new(first, last).unwrap()
}

/// A bench whose endpoints 1 to 3 have page requests, PASIDs and tables; 4 has nothing, 5 has smaller tables of each format.
fn bench() -> Bench {
    let host = FakeHost::new(&[1, 2, 3]);
    host.set_endpoint(4, EndpointProperties::default());
    let x86_64 = TableSupport {
        format: TableFormat::X86_64,
        input_bits: 48,
        output_bits: 52,
        page_sizes: 1 << 12,
    };
    let arm64 = TableSupport {
        format: TableFormat::Arm64,
        input_bits: 40,
        ..x86_64
    };
    host.set_endpoint(
        5,
        EndpointProperties {
            tables: vec![x86_64, arm64],
            ..EndpointProperties::default()
        },
    );
    Bench::with(DeviceConfig::default(), host)
}

/// The status of an ATTACH_TABLE to domain 7, in which `change` sets a field.
fn changed(bench: &Bench, endpoint: u32, change: impl FnOnce(&mut AttachTable)) -> Status {
    let mut request = attach_table_bytes(7, endpoint, 0, 0, ROOT);
    change(&mut request);
    bench.status(request.as_bytes())
}

fn arm64(request: &mut AttachTable, granule: u8, input_bits: u8) {
    request.format = U16::new(TableFormat::Arm64 as u16);
    request.granule = granule;
    request.input_bits = input_bits;
    request.table = U64::new(0x1_0000);
}

#[test]
fn attach_table_makes_a_domain_with_the_table_and_attaches__x95() {
    let bench = bench();
    assert_eq!(bench.attach_table(7, 1, ROOT), Status::Ok);
    assert_eq!(
        bench.host.table(7),
        Some(Table {
            format: TableFormat::X86_64,
            input_bits: 48,
            granule: 12,
            root: Gpa(ROOT),
            attributes: 0,
        })
    );
    assert_eq!(
        bench.host.attachment(requester(1)),
        Attachment::Domain {
            domain: DomainId(7),
            page_requests: PageRequests::Unwanted,
        }
    );
    let status = bench.device.status();
    let domain = serde_json::to_value(&status.domains).unwrap();
    assert_eq!(
        domain,
        serde_json::json!([{
            "id": 7,
            "kind": "table",
            "table": {"format": "X86_64", "input_bits": 48, "granule": 12, "root": ROOT},
            "endpoints": [1],
            "mappings": 0,
            "bytes": 0,
        }])
    );
    let counters = bench.device.counters();
    assert_eq!((counters.attach_table.get(), counters.attach.get()), (1, 0));
    assert_eq!(bench.device.mappings(DomainId(7)).unwrap().len(), 0);
}

#[test]
fn without_the_feature_neither_request_exists__x94() {
    let bench = bench();
    bench.attach_table(7, 1, ROOT);
    bench.negotiate_without(Features::ATTACH_TABLE);
    let attach = attach_table_bytes(8, 2, 0, 0, ROOT);
    let invalidate = invalidate_bytes(7, 0, u64::MAX);
    assert_eq!(bench.raw(attach.as_bytes(), 4), Reply::Unwritten);
    assert_eq!(bench.raw(invalidate.as_bytes(), 4), Reply::Unwritten);
    assert_eq!(bench.host.domains(), [7].into());
    assert!(
        !bench
            .host
            .did()
            .contains(&Did::Invalidate(DomainId(7), IovaRange::ALL))
    );
}

#[test]
fn attach_table_checks_endpoint_flags_and_pasid_as_attach_does__x95() {
    let bench = bench();
    let attach = |endpoint, flags, pasid| bench.attach_table_pasid(7, endpoint, flags, pasid, ROOT);
    // A28, X9, X12, X13; there is no BYPASS.
    assert_eq!(attach(99, 0, 0), Status::NoEnt);
    assert_eq!(attach(1, 0, 5), Status::Inval);
    assert_eq!(attach(5, PASID, 5), Status::Unsupp);
    assert_eq!(attach(5, PAGE_REQUEST, 0), Status::Unsupp);
    assert_eq!(attach(1, PASID, 256), Status::Inval);
    assert_eq!(attach(1, BYPASS, 0), Status::Inval);
    assert_eq!(attach(1, BYPASS | PAGE_REQUEST, 0), Status::Inval);
    // X10
    for (flag, feature) in [
        (PAGE_REQUEST, Features::PAGE_REQUEST),
        (PASID, Features::PASID),
    ] {
        bench.negotiate_without(feature);
        assert_eq!(attach(1, flag, 0), Status::Inval, "{feature:?}");
    }
    bench.negotiate_without(Features::empty());
    assert_eq!(bench.host.domains(), [].into());
    // R22
    let config = DeviceConfig {
        domain_range: (0, 6),
        ..DeviceConfig::default()
    };
    let narrow = Bench::with(config, FakeHost::new(&[1]));
    assert_eq!(narrow.attach_table(7, 1, ROOT), Status::Range);
    assert_eq!(narrow.attach_table(6, 1, ROOT), Status::Ok);
    // X14
    assert_eq!(attach(1, PASID | PAGE_REQUEST, 5), Status::Ok);
    assert_eq!(bench.attach(8, 1), Status::Ok);
    assert_eq!(
        bench.host.attachment(pasid_requester(1, 5)),
        Attachment::Domain {
            domain: DomainId(7),
            page_requests: PageRequests::Reported,
        }
    );
    assert_eq!(bench.host.domains(), [7, 8].into());
}

#[test]
fn attach_table_with_reserved_bytes_an_unknown_flag_or_impossible_values_is_inval__x96() {
    let bench = bench();
    for index in 0..20 {
        assert_eq!(changed(&bench, 1, |r| r.reserved[index] = 1), Status::Inval);
    }
    for bit in 3..32 {
        assert_eq!(
            changed(&bench, 1, |r| r.flags = U32::new(1 << bit)),
            Status::Inval
        );
    }
    for bits in [0, 47, 49, 56, 58, 64, 255] {
        assert_eq!(
            changed(&bench, 1, |r| r.input_bits = bits),
            Status::Inval,
            "{bits}"
        );
    }
    for granule in [0, 11, 13, 21, 255] {
        assert_eq!(
            changed(&bench, 1, |r| r.granule = granule),
            Status::Inval,
            "{granule}"
        );
    }
    for root in [1, 0x7800, 1 << 52, u64::MAX] {
        assert_eq!(
            changed(&bench, 1, |r| r.table = U64::new(root)),
            Status::Inval,
            "{root:x}"
        );
    }
    for attributes in [1, 1 << 63] {
        assert_eq!(
            changed(&bench, 1, |r| r.attributes = U64::new(attributes)),
            Status::Inval
        );
    }
    for (granule, input_bits) in [(12, 24), (12, 49), (13, 40), (0, 40)] {
        let status = changed(&bench, 5, |r| arm64(r, granule, input_bits));
        assert_eq!(status, Status::Inval, "{granule} {input_bits}");
    }
    // They are impossible whatever the endpoint is, and come before it.
    assert_eq!(changed(&bench, 4, |r| r.granule = 13), Status::Inval);
    assert_eq!(changed(&bench, 99, |r| r.granule = 13), Status::Inval);
    assert_eq!(bench.host.domains(), [].into());
    // MAIR is any value.
    let status = changed(&bench, 5, |r| {
        arm64(r, 12, 40);
        r.attributes = U64::new(0xbb44_0000_0000_ff04);
    });
    assert_eq!(status, Status::Ok);
}

#[test]
fn a_table_that_no_property_of_the_endpoint_allows_is_unsupp__x97() {
    let bench = bench();
    // 57 bits are possible, and endpoint 1 has them.
    assert_eq!(changed(&bench, 5, |r| r.input_bits = 57), Status::Unsupp);
    assert_eq!(changed(&bench, 4, |_| {}), Status::Unsupp);
    assert_eq!(changed(&bench, 1, |r| arm64(r, 12, 40)), Status::Unsupp);
    assert_eq!(changed(&bench, 5, |r| arm64(r, 16, 40)), Status::Unsupp);
    assert_eq!(changed(&bench, 5, |r| arm64(r, 12, 41)), Status::Unsupp);
    // Formats that nobody knows have no fields that could be wrong.
    for format in [0, 1, 6, 0x0f, 0x12, 0xffff] {
        let status = changed(&bench, 1, |r| {
            r.format = U16::new(format);
            r.granule = 77;
        });
        assert_eq!(status, Status::Unsupp, "{format}");
        assert_eq!(
            changed(&bench, 99, |r| r.format = U16::new(format)),
            Status::NoEnt
        );
    }
    assert_eq!(bench.host.domains(), [].into());
    assert_eq!(changed(&bench, 1, |r| r.input_bits = 57), Status::Ok);
    assert_eq!(bench.detach(7, 1), Status::Ok);
    assert_eq!(changed(&bench, 5, |_| {}), Status::Ok);
    assert_eq!(bench.detach(7, 5), Status::Ok);
    assert_eq!(changed(&bench, 5, |r| arm64(r, 12, 25)), Status::Ok);
}

#[test]
fn a_domain_keeps_its_kind_and_its_description__x98() {
    let bench = bench();
    bench.attach_table(7, 1, ROOT);
    // The whole description, for the endpoint itself and for others.
    for endpoint in [1, 2] {
        assert_eq!(
            changed(&bench, endpoint, |r| r.table = U64::new(OTHER)),
            Status::Inval
        );
        assert_eq!(
            changed(&bench, endpoint, |r| r.input_bits = 57),
            Status::Inval
        );
    }
    assert_eq!(changed(&bench, 5, |r| arm64(r, 12, 40)), Status::Inval);
    assert_eq!(bench.attach_table(7, 2, ROOT), Status::Ok);
    assert_eq!(bench.attach_table_pasid(7, 2, PASID, 5, ROOT), Status::Ok);
    assert_eq!(bench.attach_table(7, 1, ROOT), Status::Ok);
    // Attributes are a part of it.
    let mut request = attach_table_bytes(8, 5, 0, 0, 0);
    arm64(&mut request, 12, 40);
    assert_eq!(bench.status(request.as_bytes()), Status::Ok);
    request.attributes = U64::new(1);
    assert_eq!(bench.status(request.as_bytes()), Status::Inval);
    // Other kinds.
    assert_eq!(bench.attach(9, 3), Status::Ok);
    assert_eq!(bench.attach_table(9, 1, ROOT), Status::Inval);
    assert_eq!(bench.attach_table(9, 3, ROOT), Status::Inval);
    assert_eq!(bench.attach_with(10, 3, BYPASS), Status::Ok);
    assert_eq!(bench.attach_table(10, 1, ROOT), Status::Inval);
    assert_eq!(bench.translate(1, 0x123, true), Some(ROOT + 0x123));
    // The same table may be several domains.
    assert_eq!(bench.attach_table(11, 3, ROOT), Status::Ok);
    assert_eq!(bench.host.table(11), bench.host.table(7));
}

#[test]
fn a_domain_with_a_table_takes_no_attach_map_or_unmap__x99() {
    let bench = bench();
    bench.attach_table(7, 1, ROOT);
    for endpoint in [1, 2] {
        assert_eq!(bench.attach(7, endpoint), Status::Inval);
        assert_eq!(bench.attach_with(7, endpoint, BYPASS), Status::Inval);
    }
    assert_eq!(bench.map(7, 0, 0xfff, 0x8000, RW), Status::Inval);
    assert_eq!(bench.unmap(7, 0, 0xfff), Status::Inval);
    assert_eq!(bench.translate(1, 0, true), Some(ROOT));
    // Its number is free for another kind when its last attachment has ended.
    assert_eq!(bench.detach(7, 1), Status::Ok);
    assert_eq!(bench.attach(7, 1), Status::Ok);
    assert_eq!(bench.map(7, 0, 0xfff, 0x8000, RW), Status::Ok);
}

#[test]
fn an_endpoint_moves_between_mappings_tables_and_bypass() {
    let bench = bench();
    bench.attach(7, 1);
    bench.map(7, 0, 0xfff, 0x8000, RW);
    assert_eq!(bench.attach_table(8, 1, ROOT), Status::Ok);
    assert_eq!(bench.host.domains(), [8].into());
    assert_eq!(bench.attach_table(9, 1, OTHER), Status::Ok);
    assert_eq!(bench.translate(1, 0x123, true), Some(OTHER + 0x123));
    assert_eq!(bench.host.domains(), [9].into());
    assert_eq!(bench.attach_with(10, 1, BYPASS), Status::Ok);
    assert_eq!(bench.translate(1, 0x123, true), Some(0x123));
    assert_eq!(bench.attach_table(8, 1, ROOT), Status::Ok);
    assert_eq!(bench.attach(7, 1), Status::Ok);
    assert_eq!(bench.translate(1, 0, true), None);
    assert_eq!(bench.host.domains(), [7].into());
    // A host that refuses leaves the endpoint where it was.
    for call in [Call::CreateDomain, Call::AttachDomain] {
        bench.host.fail(Some(call));
        assert_eq!(bench.attach_table(8, 1, ROOT), Status::NoMem);
        bench.host.fail(None);
        assert_eq!(bench.host.domains(), [7].into());
    }
}

#[test]
fn tables_count_as_domains_and_pasids_and_take_no_mappings() {
    let config = DeviceConfig {
        max_domains: 2,
        max_pasids: 1,
        max_mappings: 0,
        ..DeviceConfig::default()
    };
    let bench = Bench::with(config, FakeHost::new(&[1, 2, 3]));
    assert_eq!(bench.attach_table(1, 1, ROOT), Status::Ok);
    assert_eq!(bench.attach_table_pasid(2, 2, PASID, 5, ROOT), Status::Ok);
    assert_eq!(
        bench.attach_table_pasid(2, 2, PASID, 6, ROOT),
        Status::NoMem
    );
    assert_eq!(bench.attach_table(3, 3, ROOT), Status::NoMem);
    assert_eq!(bench.attach_table(3, 1, ROOT), Status::Ok);
}

#[test]
fn what_is_reserved_keeps_no_pasid_from_a_table__x91() {
    let host = FakeHost::new(&[1]);
    let reserved = vec![ReservedRegion {
        range: range(0xfee0_0000, 0xfeef_ffff),
        subtype: ResvMemSubtype::Msi,
    }];
    let properties = crate::host::Host::properties(&host, EndpointId(1)).unwrap();
    host.set_endpoint(
        1,
        EndpointProperties {
            reserved,
            ..properties
        },
    );
    let bench = Bench::with(DeviceConfig::default(), host);
    assert_eq!(bench.attach_table_pasid(7, 1, PASID, 5, ROOT), Status::Ok);
    let address = 0xfee0_0010;
    let to = bench.host.translate(pasid_requester(1, 5), address, true);
    assert_eq!(to, Some(ROOT + address));
    assert_eq!(bench.invalidate(7, address, address), Status::Ok);
}

#[test]
fn page_requests_of_a_table_are_those_of_mappings__x95() {
    let bench = bench();
    let attach = |flags| bench.attach_table_pasid(7, 1, PASID | flags, 5, ROOT);
    attach(PAGE_REQUEST);
    let mut queue = FakeQueue::new(8);
    let raise = || bench.host.raise(pasid_requester(1, 5), &[page(0x5000, R)]);
    let first = raise();
    bench.service(&mut queue);
    let group = event(&queue.take()[0]).group_id.get();
    assert_eq!(bench.respond_with(1, group, 0, 1, 5), Status::Ok);
    assert_eq!(bench.host.answers(), [(first, Answer::Success)]);
    // X56: outstanding over the same request.
    let second = raise();
    bench.service(&mut queue);
    assert_eq!(attach(PAGE_REQUEST), Status::Ok);
    assert_eq!(bench.host.answers(), []);
    // X54: without the flag, and in another domain, the attachment is another.
    attach(0);
    assert_eq!(bench.host.answers(), [(second, Answer::Invalid)]);
    attach(PAGE_REQUEST);
    let third = raise();
    bench.attach_table_pasid(8, 1, PASID | PAGE_REQUEST, 5, ROOT);
    assert_eq!(bench.host.answers(), [(third, Answer::Invalid)]);
    // X43
    bench.attach_table_pasid(8, 1, PASID, 5, ROOT);
    let unwanted = raise();
    bench.service(&mut queue);
    assert_eq!(bench.host.answers(), [(unwanted, Answer::Invalid)]);
}

#[test]
fn invalidate_of_no_domain_is_noent__x101() {
    let bench = bench();
    assert_eq!(bench.invalidate(7, 0, 0xfff), Status::NoEnt);
    bench.attach_table(7, 1, ROOT);
    bench.detach(7, 1);
    assert_eq!(bench.invalidate(7, 0, 0xfff), Status::NoEnt);
    let counters = bench.device.counters();
    assert_eq!(
        (counters.invalidate.get(), counters.invalidate_failed.get()),
        (0, 2)
    );
}

#[test]
fn invalidate_without_a_table_with_a_flag_or_backwards_is_inval__x102() {
    let bench = bench();
    bench.attach(7, 1);
    bench.attach_with(8, 2, BYPASS);
    bench.attach_table(9, 3, ROOT);
    bench.host.did();
    assert_eq!(bench.invalidate(7, 0, 0xfff), Status::Inval);
    assert_eq!(bench.invalidate(8, 0, 0xfff), Status::Inval);
    assert_eq!(bench.invalidate(9, 1, 0), Status::Inval);
    assert_eq!(bench.invalidate(9, u64::MAX, 0), Status::Inval);
    for bit in 0..32 {
        let mut request = invalidate_bytes(9, 0, 0xfff);
        request.flags = U32::new(1 << bit);
        assert_eq!(bench.status(request.as_bytes()), Status::Inval);
    }
    assert_eq!(bench.host.did(), []);
    // Any alignment, also beyond what the table has: Linux tells of kernel addresses.
    let ranges = [
        (5, 5),
        (0x123, 0x5abc),
        (0, u64::MAX),
        (0xff11_0000_0000_0000, u64::MAX),
        (u64::MAX, u64::MAX),
    ];
    for (first, last) in ranges {
        assert_eq!(bench.invalidate(9, first, last), Status::Ok);
        let invalidated = Did::Invalidate(DomainId(9), range(first, last));
        assert_eq!(bench.host.did(), [invalidated]);
    }
}

#[test]
fn an_invalidate_that_the_host_refuses_fails() {
    let bench = bench();
    bench.attach_table(7, 1, ROOT);
    bench.host.fail(Some(Call::Invalidate));
    assert_eq!(bench.invalidate(7, 0, 0xfff), Status::NoMem);
    bench.host.fail(None);
    assert_eq!(bench.invalidate(7, 0, 0xfff), Status::Ok);
    let counters = bench.device.counters();
    assert_eq!(
        (counters.invalidate.get(), counters.invalidate_failed.get()),
        (1, 1)
    );
}

#[test]
fn invalidate_comes_behind_what_was_asked_for_before__x104() {
    let bench = bench();
    bench.attach(7, 1);
    bench.map(7, 0, 0xfff, 0, RW);
    bench.map(7, 0x1000, 0x1fff, 0, RW);
    bench.attach_table(8, 2, ROOT);
    bench.host.did();
    // UNMAPs wait to be joined with others, but not past an INVALIDATE.
    let requests = [
        unmap_bytes(7, 0, 0xfff),
        unmap_bytes(7, 0x1000, 0x1fff),
        invalidate_bytes(8, 0, 0xfff).as_bytes().to_vec(),
        map_bytes(7, 0, 0xfff, 0, RW),
        attach_table_bytes(8, 3, 0, 0, ROOT).as_bytes().to_vec(),
        invalidate_bytes(8, 0, 0xfff).as_bytes().to_vec(),
        detach_bytes(8, 2, 0, 0).as_bytes().to_vec(),
    ];
    let replies = bench.batch(&requests.map(|request| (request, 4)));
    assert_eq!(replies, [Reply::Status(Status::Ok); 7]);
    let invalidate = Did::Invalidate(DomainId(8), range(0, 0xfff));
    assert_eq!(
        bench.host.did(),
        [
            Did::Unmap(DomainId(7)),
            invalidate,
            Did::Map(DomainId(7)),
            Did::Attach(requester(3)),
            invalidate,
            Did::Attach(requester(2)),
        ]
    );
}

#[test]
fn invalidate_and_detach_wait_for_no_answer_and_no_buffer__x105() {
    let bench = bench();
    let attach = |pasid| bench.attach_table_pasid(7, 1, PASID | PAGE_REQUEST, pasid, ROOT);
    assert_eq!([attach(5), attach(6)], [Status::Ok; 2]);
    // Some groups are outstanding, and the event queue has no buffer for the others.
    let mut queue = FakeQueue::new(3);
    let raised: Vec<_> = (0..10)
        .map(|n| {
            bench
                .host
                .raise(pasid_requester(1, 5 + n % 2), &[page(0x5000, R)])
        })
        .collect();
    bench.service(&mut queue);
    assert_eq!(queue.take().len(), 3);
    assert_eq!(bench.invalidate(7, 0x5000, 0x5fff), Status::Ok);
    assert_eq!(bench.host.waiting(), raised);
    for pasid in [5, 6] {
        assert_eq!(bench.detach_with(7, 1, PASID, pasid), Status::Ok);
    }
    assert_eq!(bench.host.waiting(), []);
}

#[test]
fn whatever_ends_the_last_attachment_lets_go_of_the_table__x87() {
    type End = fn(&Bench);
    let ends: [(&str, End); 8] = [
        ("detach", |b| {
            assert_eq!(b.detach_with(7, 1, PASID, 5), Status::Ok)
        }),
        ("attach", |b| {
            assert_eq!(b.attach_pasid(8, 1, PASID, 5), Status::Ok)
        }),
        ("attach to bypass", |b| {
            assert_eq!(b.attach_pasid(8, 1, PASID | BYPASS, 5), Status::Ok)
        }),
        ("attach to another table", |b| {
            assert_eq!(b.attach_table_pasid(8, 1, PASID, 5, OTHER), Status::Ok)
        }),
        ("reset", |b| b.device.reset()),
        ("system reset", |b| b.device.system_reset()),
        ("disconnect", |b| b.device.disconnect()),
        ("removal", |b| {
            b.device.remove_endpoint(EndpointId(1)).unwrap()
        }),
    ];
    for (name, end) in ends {
        let bench = bench();
        bench.attach_table_pasid(7, 1, PASID, 5, ROOT);
        bench.attach_table(7, 2, ROOT);
        // Not the first that goes.
        assert_eq!(bench.detach(7, 2), Status::Ok);
        assert!(bench.host.table(7).is_some(), "{name}");
        end(&bench);
        assert_eq!(bench.host.table(7), None, "{name}");
    }
}

#[test]
fn tables_end_with_the_driver_and_mappings_do_not__x87() {
    let bench = bench();
    bench.attach(7, 1);
    bench.map(7, 0, 0xfff, 0x8000, RW);
    bench.attach_table_pasid(8, 1, PASID | PAGE_REQUEST, 5, ROOT);
    bench.attach_table(9, 2, OTHER);
    let group = bench.host.raise(pasid_requester(1, 5), &[page(0x5000, R)]);
    bench.device.suspend(bench.now);
    // It may be a pause.
    assert_eq!(bench.translate(2, 0, true), Some(OTHER));
    assert!(bench.host.holds_tables());
    bench.device.end_driver();
    assert_eq!(bench.translate(1, 0, true), Some(0x8000));
    assert_eq!(bench.host.domains(), [7].into());
    assert_eq!(bench.host.answers(), [(group, Answer::Invalid)]);
    // What were addresses of a process are no guest-physical ones now.
    for requester in [requester(2), pasid_requester(1, 5)] {
        assert_eq!(bench.host.attachment(requester), Attachment::Blocked);
    }
    let status = bench.device.status();
    assert_eq!(
        (status.endpoints[1].state, status.domains.len()),
        ("blocked", 1)
    );
    // The reset that follows puts the endpoint where the config space says.
    bench.device.reset();
    assert_eq!(bench.host.attachment(requester(2)), Attachment::Bypass);
}

#[test]
fn a_table_that_the_host_cannot_end_with_its_driver_ends_at_the_reset__x87() {
    let bench = bench();
    bench.attach_table_pasid(7, 1, PASID, 5, ROOT);
    bench.host.fail(Some(Call::Block));
    bench.device.end_driver();
    assert!(bench.host.table(7).is_some());
    bench.host.fail(None);
    bench.device.reset();
    assert_eq!(bench.host.table(7), None);
}

#[test]
fn a_paused_driver_keeps_its_tables() {
    let bench = bench();
    bench.attach_table(7, 1, ROOT);
    bench.device.suspend(bench.now);
    assert!(bench.host.holds_tables());
    assert_eq!(bench.host.released(), NONE);
    bench.device.resume(bench.now);
    assert!(!bench.host.holds_tables());
    assert_eq!(bench.host.released(), [[DomainId(7)]]);
    assert_eq!(bench.translate(1, 0x10, true), Some(ROOT + 0x10));
    assert_eq!(bench.invalidate(7, 0, 0xfff), Status::Ok);
}

/// Whoever is not the same driver finds the hold over, and before it is, the tables have ended.
#[test]
fn tables_are_held_while_the_queues_stand_and_end_before_that_does__x87() {
    type End = fn(&Bench);
    let ends: [(&str, End); 4] = [
        ("the next driver, or RESET_DEVICE", |b| b.device.reset()),
        ("reset of the machine", |b| b.device.system_reset()),
        ("disconnect", |b| b.device.disconnect()),
        ("end of the driver, and the next", |b| {
            b.device.end_driver();
            assert_eq!(b.host.released(), NONE, "not yet");
            b.device.reset();
        }),
    ];
    for (name, end) in ends {
        let bench = bench();
        bench.attach_table_pasid(7, 1, PASID, 5, ROOT);
        bench.attach_table(8, 2, OTHER);
        bench.host.released();
        bench.device.suspend(bench.now);
        bench.device.suspend(bench.now);
        assert!(bench.host.holds_tables(), "{name}");
        end(&bench);
        assert!(!bench.host.holds_tables(), "{name}");
        assert_eq!(bench.host.released(), [[]], "{name}");
        bench.device.connect();
        bench
            .device
            .negotiate(bench.device.offered_features().bits());
        assert_eq!(bench.attach_table(7, 1, ROOT), Status::Ok);
        assert!(!bench.host.holds_tables());
    }
}

#[test]
fn a_table_that_the_host_cannot_end_stays_held_until_it_has_ended__x87() {
    let bench = bench();
    bench.attach_table_pasid(7, 1, PASID, 5, ROOT);
    bench.device.suspend(bench.now);
    bench.host.fail(Some(Call::Block));
    bench.device.reset();
    assert!(bench.host.table(7).is_some() && bench.host.holds_tables());
    bench.host.fail(None);
    // The next driver's first request.
    assert_eq!(bench.attach_table(8, 2, OTHER), Status::Ok);
    assert_eq!(bench.host.table(7), None);
    assert!(!bench.host.holds_tables());
}
