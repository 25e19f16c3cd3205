// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The ACPI Virtual I/O Translation table (VIOT): which endpoints the IOMMU translates.
//!
//! QEMU writes the 36-byte ACPI header itself with `-acpitable sig=VIOT,rev=0,data=FILE`: for that there is the rest
//! alone. Others want it with the header (`--header`). Offsets inside the table count from the start of the header. The
//! crate `acpi_tables` has a VIOT too, but its endpoint numbers leave the PCI segment out, which ours have
//! ([`EndpointId`]'s `FromStr`).
#![forbid(unsafe_code)]

use std::collections::BTreeSet;
use std::io::{self, IsTerminal, Write};
use std::mem::size_of;
use std::path::Path;

use zerocopy::little_endian::{U16, U32};
use zerocopy::{Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::cli::args::ViotArgs;
use crate::spec::EndpointId;

/// Length in bytes of the ACPI header, which is not part of the output.
const ACPI_HEADER_LEN: u16 = 36;
/// Offset of the first node, the IOMMU's.
const IOMMU_NODE_OFFSET: u16 = ACPI_HEADER_LEN + size_of::<Head>() as u16;

/// The header of every ACPI table (ACPI 6.5, 5.2.6).
#[derive(IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct AcpiHeader {
    signature: [u8; 4],
    /// Of the table with its header, in bytes.
    length: U32,
    revision: u8,
    /// Makes the sum of all bytes of the table 0.
    checksum: u8,
    oem_id: [u8; 6],
    oem_table_id: [u8; 8],
    oem_revision: U32,
    creator_id: [u8; 4],
    creator_revision: U32,
}

/// What follows the ACPI header.
#[derive(IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct Head {
    node_count: U16,
    node_offset: U16,
    reserved: [u8; 8],
}

/// Node type 3: a virtio IOMMU on PCI.
#[derive(IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct VirtioPciIommu {
    kind: u8,
    reserved: u8,
    length: U16,
    segment: U16,
    bdf: U16,
    reserved2: [u8; 8],
}

/// Node type 1: a range of PCI functions.
#[derive(IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct PciRange {
    kind: u8,
    reserved: u8,
    length: U16,
    endpoint_start: U32,
    segment_start: U16,
    segment_end: U16,
    bdf_start: U16,
    bdf_end: U16,
    output_node: U16,
    reserved2: [u8; 6],
}

const _: () = {
    assert!(size_of::<AcpiHeader>() == ACPI_HEADER_LEN as usize);
    assert!(size_of::<Head>() == 12);
    assert!(size_of::<VirtioPciIommu>() == 16);
    assert!(size_of::<PciRange>() == 24);
};

/// Why a table cannot be made or written.
#[derive(Debug, thiserror::Error)]
pub enum ViotError {
    /// The IOMMU among its own endpoints.
    #[error(
        "endpoint {0} is the IOMMU itself: an IOMMU does not translate its own accesses; give each device its own address (addr= in QEMU)"
    )]
    IommuIsEndpoint(EndpointId),
    /// Twice the same.
    #[error("endpoint {0} is given twice")]
    Duplicate(EndpointId),
    /// Too many ranges for the table's counter.
    #[error("{0} ranges of endpoints are more than the table can hold; use neighbouring addresses")]
    TooMany(usize),
    /// Standard output is a terminal.
    #[error(
        "the table is binary and standard output is a terminal: use -o FILE, or redirect the output"
    )]
    Terminal,
    /// The output cannot be written.
    #[error("cannot write the table to {0}: {1}")]
    Write(String, io::Error),
}

/// The table without its ACPI header.
///
/// # Errors
/// The IOMMU is among the endpoints, an endpoint is there twice, or there are too many ranges.
pub fn table(iommu: EndpointId, endpoints: &[EndpointId]) -> Result<Vec<u8>, ViotError> {
    let ranges = ranges(iommu, endpoints)?;
    // The IOMMU is a node too.
    let node_count =
        u16::try_from(ranges.len() + 1).map_err(|_| ViotError::TooMany(ranges.len()))?;
    let head = Head {
        node_count: U16::new(node_count),
        node_offset: U16::new(IOMMU_NODE_OFFSET),
        reserved: [0; 8],
    };
    let node = VirtioPciIommu {
        kind: 3,
        reserved: 0,
        length: U16::new(size_of::<VirtioPciIommu>() as u16),
        segment: U16::new(segment(iommu.0)),
        bdf: U16::new(bdf(iommu.0)),
        reserved2: [0; 8],
    };
    let mut bytes = [head.as_bytes(), node.as_bytes()].concat();
    for (first, last) in ranges {
        let range = PciRange {
            kind: 1,
            reserved: 0,
            length: U16::new(size_of::<PciRange>() as u16),
            endpoint_start: U32::new(first),
            segment_start: U16::new(segment(first)),
            segment_end: U16::new(segment(last)),
            bdf_start: U16::new(bdf(first)),
            bdf_end: U16::new(bdf(last)),
            output_node: U16::new(IOMMU_NODE_OFFSET),
            reserved2: [0; 6],
        };
        bytes.extend_from_slice(range.as_bytes());
    }
    Ok(bytes)
}

/// A table with its header and checksum.
fn with_header(table: &[u8]) -> Vec<u8> {
    let mut header = AcpiHeader {
        signature: *b"VIOT",
        // A table of 65,535 ranges, the most there are, has 1.6 MB.
        length: U32::new(u32::from(ACPI_HEADER_LEN) + table.len() as u32),
        revision: 0,
        checksum: 0,
        oem_id: *b"VHOST ",
        oem_table_id: *b"IOMMU   ",
        oem_revision: U32::new(1),
        creator_id: *b"VDIO",
        creator_revision: U32::new(1),
    };
    header.checksum = sum(&[header.as_bytes(), table].concat()).wrapping_neg();
    [header.as_bytes(), table].concat()
}

fn sum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0, |sum, &byte| sum.wrapping_add(byte))
}

/// Neighbouring endpoints of a segment, joined; ascending.
fn ranges(iommu: EndpointId, endpoints: &[EndpointId]) -> Result<Vec<(u32, u32)>, ViotError> {
    let mut sorted = BTreeSet::new();
    for &endpoint in endpoints {
        if endpoint == iommu {
            return Err(ViotError::IommuIsEndpoint(endpoint));
        }
        if !sorted.insert(endpoint.0) {
            return Err(ViotError::Duplicate(endpoint));
        }
    }
    let mut ranges: Vec<(u32, u32)> = Vec::new();
    for id in sorted {
        match ranges.last_mut() {
            Some((_, last)) if *last + 1 == id && segment(*last) == segment(id) => *last = id,
            _ => ranges.push((id, id)),
        }
    }
    Ok(ranges)
}

fn segment(id: u32) -> u16 {
    (id >> 16) as u16
}

fn bdf(id: u32) -> u16 {
    id as u16
}

/// Every function of the bus that `first` is on.
fn functions(first: EndpointId) -> impl Iterator<Item = EndpointId> {
    (first.0..=first.0 | 0xff).map(EndpointId)
}

/// `vhost-device-iommu viot`.
///
/// # Errors
/// There is no such table, or it cannot be written.
pub fn run(args: &ViotArgs) -> Result<(), ViotError> {
    let on_buses = args.buses.iter().copied().flat_map(functions);
    let endpoints: Vec<_> = args.endpoints.iter().copied().chain(on_buses).collect();
    let body = table(args.iommu, &endpoints)?;
    let table = match args.header {
        true => with_header(&body),
        false => body,
    };
    match &args.output {
        Some(path) => write_file(path, &table),
        None => {
            let mut output = io::stdout().lock();
            if output.is_terminal() {
                return Err(ViotError::Terminal);
            }
            output
                .write_all(&table)
                .and_then(|()| output.flush())
                .map_err(|error| ViotError::Write("standard output".to_owned(), error))
        }
    }
}

fn write_file(path: &Path, table: &[u8]) -> Result<(), ViotError> {
    std::fs::write(path, table).map_err(|error| ViotError::Write(path.display().to_string(), error))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(text: &str) -> EndpointId {
        text.parse().expect("endpoint")
    }

    fn ids(texts: &[&str]) -> Vec<EndpointId> {
        texts.iter().copied().map(id).collect()
    }

    /// Byte for byte what Linux 7.2 accepted under QEMU.
    #[test]
    fn one_endpoint_makes_the_table_that_linux_accepts() {
        let table = table(id("00:04.0"), &ids(&["00:05.0"])).expect("table");
        #[rustfmt::skip]
        let expected = [
            2, 0, 48, 0, 0, 0, 0, 0, 0, 0, 0, 0,
            3, 0, 16, 0, 0, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0,
            1, 0, 24, 0, 0x28, 0, 0, 0, 0, 0, 0, 0, 0x28, 0, 0x28, 0, 48, 0, 0, 0, 0, 0, 0, 0,
        ];
        assert_eq!(table, expected);
    }

    #[test]
    fn a_whole_table_has_a_length_and_a_sum_of_zero() {
        let body = table(id("00:04.0"), &ids(&["00:05.0"])).expect("table");
        let whole = with_header(&body);
        assert_eq!(&whole[..4], b"VIOT");
        assert_eq!(whole[4..8], [36 + 52, 0, 0, 0]);
        assert_eq!(whole[36..], body);
        assert_eq!(sum(&whole), 0);
    }

    #[test]
    fn neighbours_become_one_range() {
        let endpoints = ids(&["00:06.0", "00:05.6", "00:05.7", "00:07.0", "0001:00:00.0"]);
        assert_eq!(
            ranges(id("00:04.0"), &endpoints).expect("ranges"),
            [(0x2e, 0x30), (0x38, 0x38), (0x1_0000, 0x1_0000)]
        );
    }

    #[test]
    fn a_bus_is_one_range() {
        let endpoints: Vec<_> = functions(id("01:00.0")).chain([id("00:05.0")]).collect();
        assert_eq!(
            ranges(id("00:04.0"), &endpoints).expect("ranges"),
            [(0x28, 0x28), (0x100, 0x1ff)]
        );
    }

    #[test]
    fn a_range_does_not_cross_segments() {
        let endpoints = [EndpointId(0xffff), EndpointId(0x1_0000)];
        assert_eq!(
            ranges(EndpointId(0), &endpoints).expect("ranges"),
            [(0xffff, 0xffff), (0x1_0000, 0x1_0000)]
        );
        let last = [EndpointId(u32::MAX), EndpointId(u32::MAX - 1)];
        assert_eq!(
            ranges(EndpointId(0), &last).expect("ranges"),
            [(u32::MAX - 1, u32::MAX)]
        );
    }

    #[test]
    fn the_iommu_is_never_inside_a_range() {
        let around = ids(&["00:03.7", "00:04.1"]);
        assert_eq!(
            ranges(id("00:04.0"), &around).expect("ranges"),
            [(0x1f, 0x1f), (0x21, 0x21)]
        );
        assert!(matches!(
            table(id("00:04.0"), &ids(&["00:04.0"])),
            Err(ViotError::IommuIsEndpoint(_))
        ));
    }

    #[test]
    fn an_endpoint_given_twice_is_refused() {
        let twice = ids(&["00:05.0", "0x28"]);
        assert!(matches!(
            table(id("00:04.0"), &twice),
            Err(ViotError::Duplicate(_))
        ));
    }

    #[test]
    fn more_ranges_than_the_table_can_count_are_refused() {
        let every_other: Vec<_> = (1..=0x1_0000).map(|n| EndpointId(2 * n)).collect();
        assert!(matches!(
            table(EndpointId(0), &every_other),
            Err(ViotError::TooMany(_))
        ));
    }
}
