#!/bin/bash
# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
#
# Software:  crate acpi_tables 0.2.1 (rust-vmm/acpi_tables), module viot
# Behaviour: The crate updates the checksum of a VIOT each time a node is added. It counts the nodes as if their number were one
#            byte, and the table has two bytes for it. From 256 nodes on the checksum is too small by one for each 256 nodes. The
#            crate reports no error. A reader that verifies the checksum drops the table.
# Seen:      The bytes of the table add up to 0 with 2 and with 255 nodes, to 1 with 256, and to 2 with 512. The number of nodes
#            and the length in the table are right.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
mkdir src

cat >Cargo.toml <<'END'
[package]
name = "finding"
version = "0.0.0"
edition = "2021"

[dependencies]
acpi_tables = "=0.2.1"
END

cat >src/main.rs <<'END'
use acpi_tables::viot::{PciDevice, PciRange, VirtIoPciIommu, VIOT};
use acpi_tables::Aml;

/// A function each, from 00:05.0 on.
fn function(number: usize) -> PciDevice {
    let number = number + 40;
    PciDevice::new(0, (number >> 8) as u8, (number >> 3 & 31) as u8, (number & 7) as u8)
}

fn main() {
    for nodes in [2, 255, 256, 512] {
        let mut viot = VIOT::new(*b"FINDNG", *b"FINDINGS", 1);
        let iommu = viot.add_virtio_pci_iommu(VirtIoPciIommu::new(PciDevice::new(0, 0, 4, 0)));
        for number in 1..nodes {
            viot.add_pci_range(PciRange::new(function(number), function(number), &iommu));
        }
        let mut table = Vec::new();
        viot.to_aml_bytes(&mut table);

        let count = u16::from_le_bytes(table[36..38].try_into().unwrap());
        let length = u32::from_le_bytes(table[4..8].try_into().unwrap());
        assert_eq!(length as usize, table.len());
        let sum = table.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte));
        println!("{count} nodes: sum {sum}");
    }
}
END

cat >expected <<'END'
2 nodes: sum 0
255 nodes: sum 0
256 nodes: sum 1
512 nodes: sum 2
END

cargo build --quiet
timeout 60 target/debug/finding >seen
if ! diff expected seen; then
    echo "CHANGED: the checksum of a large VIOT is another" >&2
    exit 1
fi
echo "As described: a VIOT of 256 nodes has a wrong checksum"
