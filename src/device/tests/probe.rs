// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! PROBE.

use zerocopy::FromBytes;

use super::fake::{FakeHost, X86_64};
use super::*;
use crate::host::mapping::IovaRange;
use crate::host::table::TableSupport;
use crate::host::{EndpointProperties, Owner, ReservedRegion};
use crate::spec::{
    PageRequestProperty, PasidProperty, PropertyHead, PropertyType, ResvMemProperty,
    ResvMemSubtype, TableProperty,
};

fn probe_size(bench: &Bench) -> usize {
    let config = bench.device.config_space();
    u32::from_le_bytes(config[32..36].try_into().unwrap()) as usize
}

/// The properties as (type, whole property).
fn properties(bench: &Bench, endpoint: u32) -> Vec<(u16, Vec<u8>)> {
    let writable = probe_size(bench) + 4;
    let mut batch = bench.device.requests();
    let request = probe_bytes(endpoint);
    let step = batch.execute(&request, request.len(), writable);
    assert_eq!(step.reply, Reply::Properties);
    let mut bytes = batch.properties();
    let mut list = Vec::new();
    while !bytes.is_empty() {
        let (head, _) = PropertyHead::read_from_prefix(bytes).unwrap();
        assert_eq!(head.kind.get() & 0xf000, 0, "P57: reserved bits");
        let (property, rest) = bytes.split_at(usize::from(head.length.get()) + 4);
        list.push((head.kind.get(), property.to_vec()));
        bytes = rest;
    }
    list
}

fn endpoint_with_holes() -> EndpointProperties {
    EndpointProperties {
        page_requests: true,
        pasid_width: 20,
        pasid_flags: crate::spec::PasidFlags::PRIVILEGED,
        reserved: vec![ReservedRegion {
            range: IovaRange::new(0xfee0_0000, 0xfeef_ffff).unwrap(),
            subtype: ResvMemSubtype::Reserved,
        }],
        tables: Vec::new(),
        owner: Owner::Host,
    }
}

#[test]
fn properties_follow_each_other_and_name_what_the_endpoint_has__p57_v61_x24_x25_x29_x30() {
    let host = FakeHost::new(&[]);
    host.set_endpoint(1, endpoint_with_holes());
    let config = DeviceConfig {
        reserved_regions: vec![ReservedRegion {
            range: IovaRange::new(0x800_0000, 0x80f_ffff).unwrap(),
            subtype: ResvMemSubtype::Msi,
        }],
        ..DeviceConfig::default()
    };
    let bench = Bench::with(config, host);
    let list = properties(&bench, 1);
    assert_eq!(
        list.iter().map(|(kind, _)| *kind).collect::<Vec<_>>(),
        [
            1,
            1,
            PropertyType::PageRequest as u16,
            PropertyType::Pasid as u16
        ]
    );
    let regions: Vec<_> = list[..2]
        .iter()
        .map(|(_, bytes)| ResvMemProperty::read_from_bytes(bytes).unwrap())
        .map(|p| (p.subtype, p.first.get(), p.last.get(), p.reserved))
        .collect();
    assert_eq!(
        regions,
        [
            (1, 0x800_0000, 0x80f_ffff, [0; 3]),
            (0, 0xfee0_0000, 0xfeef_ffff, [0; 3])
        ]
    );
    let page_request = PageRequestProperty::read_from_bytes(&list[2].1).unwrap();
    assert_eq!(
        (page_request.flags.get(), page_request.max_pending.get()),
        (0, 4096)
    );
    let pasid = PasidProperty::read_from_bytes(&list[3].1).unwrap();
    assert_eq!(
        (pasid.flags.get(), pasid.width, pasid.reserved),
        (2, 20, [0; 3])
    );
}

#[test]
fn a_driver_without_the_extension_sees_none_of_its_properties__x23_x28() {
    let host = FakeHost::new(&[]);
    host.set_endpoint(1, endpoint_with_holes());
    let bench = Bench::with(DeviceConfig::default(), host);
    bench.negotiate_without(Features::PAGE_REQUEST | Features::PASID);
    assert_eq!(properties(&bench, 1).len(), 1);
}

/// An endpoint with both formats of tables.
fn endpoint_with_tables() -> EndpointProperties {
    let arm64 = TableSupport {
        format: TableFormat::Arm64,
        input_bits: 48,
        output_bits: 44,
        page_sizes: 1 << 12 | 1 << 16,
    };
    EndpointProperties {
        tables: vec![X86_64, arm64],
        ..endpoint_with_holes()
    }
}

#[test]
fn an_endpoint_has_one_property_for_each_format_of_tables__x76_x77() {
    let host = FakeHost::new(&[1, 3]);
    host.set_endpoint(1, endpoint_with_tables());
    host.set_endpoint(3, endpoint_with_holes());
    let bench = Bench::with(DeviceConfig::default(), host);
    let tables: Vec<_> = properties(&bench, 1)
        .into_iter()
        .filter(|(kind, _)| *kind == PropertyType::Table as u16)
        .map(|(_, bytes)| TableProperty::read_from_bytes(&bytes).unwrap())
        .map(|p| {
            assert_eq!(
                (p.head.length.get(), p.flags.get(), p.reserved),
                (20, 0, [0; 4])
            );
            let bits = (p.input_bits, p.output_bits);
            (p.format.get(), bits, p.page_size_mask.get())
        })
        .collect();
    assert_eq!(
        tables,
        [(0x10, (57, 52), 0x20_1000), (0x11, (48, 44), 0x1_1000)]
    );
    // None for one that cannot be attached to tables.
    assert_eq!(properties(&bench, 3).len(), 3);
}

#[test]
fn a_driver_without_tables_sees_no_property_of_them__x75() {
    let host = FakeHost::new(&[]);
    host.set_endpoint(1, endpoint_with_tables());
    let bench = Bench::with(DeviceConfig::default(), host);
    let with = properties(&bench, 1);
    bench.negotiate_without(Features::ATTACH_TABLE);
    assert_eq!(properties(&bench, 1), with[..3]);
}

#[test]
fn probe_ignores_its_reserved_bytes__p54() {
    let bench = Bench::new();
    let mut zeroed = probe_bytes(1);
    zeroed[8..].fill(0);
    let size = probe_size(&bench) + 4;
    assert_eq!(bench.raw(&zeroed, size), Reply::Properties);
    assert_eq!(bench.raw(&probe_bytes(1), size), Reply::Properties);
}

#[test]
fn probe_of_an_unknown_endpoint_is_noent__p55() {
    let bench = Bench::new();
    let size = probe_size(&bench) + 4;
    assert_eq!(
        bench.raw(&probe_bytes(99), size),
        Reply::Status(Status::NoEnt)
    );
}

#[test]
fn probe_is_served_whenever_offered__p56() {
    let bench = Bench::new();
    bench.negotiate_without(Features::PROBE);
    assert_eq!(
        bench.raw(&probe_bytes(1), probe_size(&bench) + 4),
        Reply::Properties
    );
}

#[test]
fn a_probe_buffer_smaller_than_probe_size_is_inval__p58() {
    let bench = Bench::new();
    for size in [4, 8, probe_size(&bench) + 3] {
        assert_eq!(
            bench.raw(&probe_bytes(1), size),
            Reply::Status(Status::Inval)
        );
    }
    assert_eq!(
        bench.raw(&probe_bytes(1), probe_size(&bench) + 100),
        Reply::Properties
    );
}

#[test]
fn properties_always_fit_probe_size__p58() {
    let host = FakeHost::new(&[]);
    let reserved = (0..100)
        .map(|i| ReservedRegion {
            range: IovaRange::new(i * 0x2000, i * 0x2000 + 0xfff).unwrap(),
            subtype: ResvMemSubtype::Reserved,
        })
        .collect();
    host.set_endpoint(
        1,
        EndpointProperties {
            reserved,
            ..endpoint_with_tables()
        },
    );
    let bench = Bench::with(DeviceConfig::default(), host);
    assert!(probe_size(&bench) >= 102 * 24);
    assert_eq!(properties(&bench, 1).len(), 104);
}

#[test]
fn an_endpoint_that_cannot_has_no_property__x24_x29() {
    let host = FakeHost::new(&[]);
    host.set_endpoint(1, EndpointProperties::default());
    let bench = Bench::with(DeviceConfig::default(), host);
    assert!(properties(&bench, 1).is_empty());
}
