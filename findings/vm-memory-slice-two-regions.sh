#!/bin/bash
# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
#
# Software:  crate vm-memory 0.18.0 (rust-vmm/vm-memory), GuestMemoryMmap
# Behaviour: Two regions of guest memory can follow each other without a gap, for example if the machine has several modules of
#            memory. For a buffer across the border, check_range() returns true, and write() and write_obj() work. get_slice() of
#            the same range fails, and its error speaks of an invalid backend address. So code that checks first and then takes a
#            slice works until a buffer of the guest lies on a border. get_slices() returns all parts.
# Seen:      Regions 0-0xfff and 0x1000-0x1fff, a buffer of 32 bytes at 0xff0: check_range true, write 32 bytes, get_slice an
#            error, get_slices 16 + 16 bytes.
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
vm-memory = { version = "=0.18.0", features = ["backend-mmap"] }
END

cat >src/main.rs <<'END'
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};

fn main() {
    let regions = [(GuestAddress(0), 0x1000), (GuestAddress(0x1000), 0x1000)];
    let memory = GuestMemoryMmap::<()>::from_ranges(&regions).unwrap();
    let buffer = GuestAddress(0xff0);

    println!("check_range {}", GuestMemoryBackend::check_range(&memory, buffer, 32));
    println!("write {} bytes", memory.write(&[1; 32], buffer).unwrap());
    println!("get_slice {}", GuestMemoryBackend::get_slice(&memory, buffer, 32).unwrap_err());
    let parts = GuestMemoryBackend::get_slices(&memory, buffer, 32);
    let parts: Vec<usize> = parts.map(|part| part.unwrap().len()).collect();
    println!("get_slices {parts:?}");
}
END

cat >expected <<'END'
check_range true
write 32 bytes
get_slice Guest memory error: invalid backend address
get_slices [16, 16]
END

cargo build --quiet
timeout 60 target/debug/finding >seen
if ! diff expected seen; then
    echo "CHANGED: get_slice() of a range in two regions gives something else" >&2
    exit 1
fi
echo "As described: check_range() says yes where get_slice() fails"
