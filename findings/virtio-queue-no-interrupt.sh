#!/bin/bash
# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
#
# Software:  crate virtio-queue 0.18.0 (rust-vmm/vm-virtio)
# Behaviour: needs_notification() says whether the driver wants an interrupt. It knows VIRTIO_F_EVENT_IDX only. A driver without
#            that feature sets VRING_AVAIL_F_NO_INTERRUPT in the available ring's flags if it wants none. needs_notification()
#            does not read these flags and always returns true. A device that honours the flag has to read it itself.
# Seen:      EVENT_IDX is not negotiated, the flags in guest memory are 1, and one buffer was used: true, as with flags = 0.
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
virtio-queue = "=0.18.0"
vm-memory = { version = "=0.18.0", features = ["backend-mmap"] }
END

cat >src/main.rs <<'END'
use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

fn main() {
    let memory = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 0x10000)]).unwrap();
    for flags in [0u16, 1] {
        let mut queue = Queue::new(16).unwrap();
        queue.set_desc_table_address(Some(0x1000), None);
        queue.set_avail_ring_address(Some(0x2000), None);
        queue.set_used_ring_address(Some(0x3000), None);
        queue.set_ready(true);
        memory.write_obj(flags, GuestAddress(0x2000)).unwrap();

        queue.add_used(&memory, 0, 0).unwrap();
        println!("flags {flags}: {}", queue.needs_notification(&memory).unwrap());
    }
}
END

cat >expected <<'END'
flags 0: true
flags 1: true
END

cargo build --quiet
timeout 60 target/debug/finding >seen
if ! diff expected seen; then
    echo "CHANGED: needs_notification() reads VRING_AVAIL_F_NO_INTERRUPT" >&2
    exit 1
fi
echo "As described: VRING_AVAIL_F_NO_INTERRUPT makes no difference"
