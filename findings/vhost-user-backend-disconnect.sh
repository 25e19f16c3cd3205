#!/bin/bash
# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
#
# Software:  crate vhost-user-backend 0.24.0 (rust-vmm/vhost)
# Behaviour: If the front-end closes its socket between two messages, VhostUserDaemon::wait() returns an error. Every connection
#            that ends in good order ends like this. If the connection was reset, wait() returns Ok. serve() turns the error into
#            Ok. A back-end that serves one connection after the other calls start() and wait(), and has to do the same itself.
# Seen:      A front-end asks for the features and closes: Err(HandleRequest(Disconnected)).
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
use std::io;
use std::os::unix::net::UnixStream;
use vhost::vhost_user::message::{VhostUserProtocolFeatures, VhostUserVirtioFeatures};
use vhost::vhost_user::{Frontend, Listener};
use vhost::VhostBackend;
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

/// A daemon, and the front-end that is connected to it.
fn connect() -> (VhostUserDaemon<Device>, Frontend) {
    let memory = GuestMemoryAtomic::new(GuestMemoryMmap::new());
    let mut daemon = VhostUserDaemon::new("finding".into(), Device, memory).unwrap();
    let mut listener = Listener::new("socket", true).unwrap();
    let stream = UnixStream::connect("socket").unwrap();
    daemon.start(&mut listener).unwrap();
    (daemon, Frontend::from_stream(stream, 2))
}

fn main() {
    let (mut daemon, front_end) = connect();
    front_end.get_features().unwrap();
    drop(front_end);
    println!("{:?}", daemon.wait());
    daemon.get_epoll_handlers().iter().for_each(|handler| handler.send_exit_event());
}
END

cat >expected <<'END'
Err(HandleRequest(Disconnected))
END

cargo build --quiet
timeout 60 target/debug/finding >seen
if ! diff expected seen; then
    echo "CHANGED: the end of a connection gives another result" >&2
    exit 1
fi
echo "As described: a connection that ends in good order is an error"
