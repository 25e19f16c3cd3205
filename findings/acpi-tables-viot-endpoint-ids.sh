#!/bin/bash
# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
#
# Software:  crate acpi_tables 0.2.1 (rust-vmm/acpi_tables), module viot
# Behaviour: A range of PCI functions in a VIOT begins with the endpoint ID of its first function. PciRange makes this ID from
#            bus, device and function, and leaves the PCI segment out. A caller cannot choose another ID. So two functions that
#            differ only in their segment get the same ID behind the same IOMMU.
# Seen:      Ranges for 0000:00:05.0 and 0001:00:05.0 behind one IOMMU both begin with endpoint ID 40. The table's revision is 1;
#            in QEMU 11.1.3's table for its own virtio-iommu it is 0.
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

const HEADER: usize = 48;
const IOMMU: usize = 16;
const RANGE: usize = 24;

fn main() {
    let mut viot = VIOT::new(*b"FINDNG", *b"FINDINGS", 1);
    let iommu = viot.add_virtio_pci_iommu(VirtIoPciIommu::new(PciDevice::new(0, 0, 4, 0)));
    for segment in [0, 1] {
        let function = || PciDevice::new(segment, 0, 5, 0);
        viot.add_pci_range(PciRange::new(function(), function(), &iommu));
    }
    let mut table = Vec::new();
    viot.to_aml_bytes(&mut table);

    println!("revision {}", table[8]);
    for node in table[HEADER + IOMMU..].chunks(RANGE) {
        let id = u32::from_le_bytes(node[4..8].try_into().unwrap());
        let segment = u16::from_le_bytes(node[8..10].try_into().unwrap());
        let function = u16::from_le_bytes(node[12..14].try_into().unwrap());
        println!("segment {segment}, function {function}: endpoint ID {id}");
    }
}
END

cat >expected <<'END'
revision 1
segment 0, function 40: endpoint ID 40
segment 1, function 40: endpoint ID 40
END

cargo build --quiet
timeout 60 target/debug/finding >seen
if ! diff expected seen; then
    echo "CHANGED: acpi_tables numbers the endpoints of segments in another way" >&2
    exit 1
fi
echo "As described: endpoints of two segments have the same ID"
