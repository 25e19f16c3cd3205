#!/bin/bash
# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
#
# Software:  crate vhost-user-backend 0.24.0 (rust-vmm/vhost)
# Behaviour: A VhostUserDaemon serves one connection, so a back-end that outlives its front-end makes a daemon for each
#            connection. exit_event() gives the daemon the consumer of each worker's exit event. When the daemon is dropped, these
#            consumers stay open: one descriptor for each worker and connection, until the process ends. If a backend ends its
#            workers by an event that it registers itself, it can close that event.
# Seen:      Four daemons with two workers each are made, ended and dropped. Their threads are gone, and 8 descriptors more are
#            open.
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
vhost = { version = "=0.18.0", features = ["vhost-user-frontend", "vhost-user-backend"] }
vhost-user-backend = "=0.24.0"
vm-memory = { version = "=0.18.0", features = ["backend-mmap", "backend-atomic"] }
vmm-sys-util = "=0.15.0"
END

cat >src/main.rs <<'END'
use std::{fs, io, thread};
use vhost::vhost_user::message::{VhostUserProtocolFeatures, VhostUserVirtioFeatures};
use vhost_user_backend::{VhostUserBackend, VhostUserDaemon, VringRwLock};
use vm_memory::{GuestMemoryAtomic, GuestMemoryMmap};
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::event::{new_event_consumer_and_notifier, EventConsumer, EventFlag, EventNotifier};

#[derive(Clone)]
struct Device;

impl VhostUserBackend for Device {
    type Bitmap = ();
    type Vring = VringRwLock;
    fn num_queues(&self) -> usize {
        2
    }
    fn max_queue_size(&self) -> usize {
        16
    }
    fn features(&self) -> u64 {
        1 << 32 | VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits()
    }
    fn protocol_features(&self) -> VhostUserProtocolFeatures {
        VhostUserProtocolFeatures::MQ
    }
    fn set_event_idx(&self, _: bool) {}
    fn update_memory(&self, _: GuestMemoryAtomic<GuestMemoryMmap>) -> io::Result<()> {
        Ok(())
    }
    fn queues_per_thread(&self) -> Vec<u64> {
        vec![0b01, 0b10]
    }
    fn exit_event(&self, _: usize) -> Option<(EventConsumer, EventNotifier)> {
        Some(new_event_consumer_and_notifier(EventFlag::NONBLOCK).unwrap())
    }
    fn handle_event(&self, _: u16, _: EventSet, _: &[VringRwLock], _: usize) -> io::Result<()> {
        Ok(())
    }
}

fn entries(directory: &str) -> usize {
    fs::read_dir(directory).unwrap().count()
}

fn main() {
    let before = entries("/proc/self/fd");
    for _ in 0..4 {
        let memory = GuestMemoryAtomic::new(GuestMemoryMmap::new());
        let daemon = VhostUserDaemon::new("finding".into(), Device, memory).unwrap();
        daemon.get_epoll_handlers().iter().for_each(|handler| handler.send_exit_event());
        drop(daemon);
    }
    while entries("/proc/self/task") > 1 {
        thread::yield_now();
    }
    println!("{} descriptors more", entries("/proc/self/fd") - before);
}
END

cat >expected <<'END'
8 descriptors more
END

cargo build --quiet
timeout 60 target/debug/finding >seen
if ! diff expected seen; then
    echo "CHANGED: the end of a daemon leaves another number of descriptors" >&2
    exit 1
fi
echo "As described: each worker of a dropped daemon leaves a descriptor"
