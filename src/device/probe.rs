// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The properties of an endpoint as PROBE tells them (§ PROBE request).

use std::mem::size_of;

use zerocopy::IntoBytes;
use zerocopy::little_endian::{U16, U32, U64};

use crate::device::endpoint::Endpoint;
use crate::host::ReservedRegion;
use crate::host::table::TableSupport;
use crate::spec::{
    Features, PageRequestProperty, PasidProperty, PropertyHead, PropertyType, ResvMemProperty,
    TableProperty,
};

/// `probe_size` at least: room for an endpoint with 18 reserved regions and both formats of tables that is plugged in
/// later.
pub(super) const MIN_PROBE_SIZE: usize = 512;

/// Bytes that the properties of an endpoint take at most, whatever is negotiated.
pub(super) fn size(endpoint: &Endpoint) -> usize {
    endpoint.reserved.len() * size_of::<ResvMemProperty>()
        + size_of::<PageRequestProperty>()
        + size_of::<PasidProperty>()
        + endpoint.properties.tables.len() * size_of::<TableProperty>()
}

/// Appends the properties of an endpoint. Those of drafts 1 and 2 only to a driver that knows them.
pub(super) fn append(
    endpoint: &Endpoint,
    features: Features,
    max_page_requests: usize,
    out: &mut Vec<u8>,
) {
    for region in &endpoint.reserved {
        out.extend_from_slice(reserved(region).as_bytes());
    }
    if features.contains(Features::PAGE_REQUEST) && endpoint.properties.page_requests {
        let property = PageRequestProperty {
            head: PropertyHead::new(PropertyType::PageRequest, size_of::<PageRequestProperty>()),
            flags: U32::new(0),
            max_pending: U32::new(max_page_requests.try_into().unwrap_or(u32::MAX)),
        };
        out.extend_from_slice(property.as_bytes());
    }
    if features.contains(Features::PASID) && endpoint.properties.pasid_width > 0 {
        let property = PasidProperty {
            head: PropertyHead::new(PropertyType::Pasid, size_of::<PasidProperty>()),
            flags: U32::new(endpoint.properties.pasid_flags.bits()),
            width: endpoint.properties.pasid_width,
            reserved: [0; 3],
        };
        out.extend_from_slice(property.as_bytes());
    }
    // X75, X76
    if features.contains(Features::ATTACH_TABLE) {
        for support in &endpoint.properties.tables {
            out.extend_from_slice(table(support).as_bytes());
        }
    }
}

fn table(support: &TableSupport) -> TableProperty {
    TableProperty {
        head: PropertyHead::new(PropertyType::Table, size_of::<TableProperty>()),
        format: U16::new(support.format as u16),
        input_bits: support.input_bits,
        output_bits: support.output_bits,
        page_size_mask: U64::new(support.page_sizes),
        // X77
        flags: U32::new(0),
        reserved: [0; 4],
    }
}

fn reserved(region: &ReservedRegion) -> ResvMemProperty {
    ResvMemProperty {
        head: PropertyHead::new(PropertyType::ResvMem, size_of::<ResvMemProperty>()),
        subtype: region.subtype as u8,
        reserved: [0; 3],
        first: U64::new(region.range.first.0),
        last: U64::new(region.range.last.0),
    }
}
