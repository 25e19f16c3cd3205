#!/bin/bash
# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
#
# Software:  crate vhost 0.18.0 (rust-vmm/vhost), its front-end, with crate vhost-user-backend 0.24.0
# Behaviour: If front-end and back-end have negotiated REPLY_ACK, the front-end can ask for an answer to each message. Frontend
#            does not ask by itself: set_mem_table() and other calls without an answer in the protocol return Ok as soon as the
#            message is sent, and the back-end's refusal gets lost. The caller has to ask for answers with
#            set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY), after set_protocol_features(). From then on the calls wait, and
#            return an error.
# Seen:      REPLY_ACK is negotiated, and the back-end refuses SET_MEM_TABLE. Without the flag set_mem_table() returns Ok. With
#            the flag it returns BackendInternalError.
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
use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::{fs, io};
use vhost::vhost_user::message::{VhostUserHeaderFlag, VhostUserProtocolFeatures, VhostUserVirtioFeatures};
use vhost::vhost_user::{Frontend, Listener, VhostUserFrontend};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo};
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
        1
    }
    fn max_queue_size(&self) -> usize {
        16
    }
    fn features(&self) -> u64 {
        1 << 32 | VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits()
    }
    fn protocol_features(&self) -> VhostUserProtocolFeatures {
        VhostUserProtocolFeatures::REPLY_ACK
    }
    fn set_event_idx(&self, _: bool) {}
    fn update_memory(&self, _: GuestMemoryAtomic<GuestMemoryMmap>) -> io::Result<()> {
        Err(io::Error::other("no"))
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
    (daemon, Frontend::from_stream(stream, 1))
}

/// What the front-end hears of the refusal.
fn show(need_reply: bool) {
    let (mut daemon, mut front_end) = connect();
    front_end.set_owner().unwrap();
    let features = front_end.get_features().unwrap();
    front_end.set_features(features).unwrap();
    let features = front_end.get_protocol_features().unwrap();
    front_end.set_protocol_features(features).unwrap();
    assert_eq!(features, VhostUserProtocolFeatures::REPLY_ACK);

    fs::write("memory", vec![0; 0x10000]).unwrap();
    let memory = File::options().read(true).write(true).open("memory").unwrap();
    if need_reply {
        front_end.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
    }
    let result = front_end.set_mem_table(&[VhostUserMemoryRegionInfo {
        guest_phys_addr: 0,
        memory_size: 0x10000,
        userspace_addr: 0x10_0000,
        mmap_offset: 0,
        mmap_handle: memory.as_raw_fd(),
    }]);
    daemon.wait().expect_err("refused");
    println!("NEED_REPLY {need_reply}: {result:?}");
    daemon.get_epoll_handlers().iter().for_each(|handler| handler.send_exit_event());
}

fn main() {
    show(false);
    show(true);
}
END

cat >expected <<'END'
NEED_REPLY false: Ok(None)
NEED_REPLY true: Err(VhostUserProtocol(BackendInternalError))
END

cargo build --quiet
timeout 60 target/debug/finding >seen
if ! diff expected seen; then
    echo "CHANGED: the front-end hears of a refusal in other cases" >&2
    exit 1
fi
echo "As described: with REPLY_ACK alone, a refusal gets lost"
