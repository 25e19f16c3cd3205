#!/bin/bash
# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
#
# Software:  crate vhost-user-backend 0.24.0 (rust-vmm/vhost)
# Behaviour: The daemon calls handle_event() for a queue when its ring is enabled. The driver has not kicked then, and the
#            available ring can be empty. So a device that counts calls as kicks counts one too many at each start. The number
#            that handle_event() gets is not the queue's: with queues_per_thread() it is the position among the queues of that
#            worker.
# Seen:      Two queues have a worker each. The front-end enables queue 1 without a kick: handle_event() gets 0, in worker 1.
#            After a kick it gets 0 in worker 1 again.
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
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{channel, Sender};
use std::sync::{Arc, Mutex};
use std::{fs, io};
use vhost::vhost_user::message::{VhostUserProtocolFeatures, VhostUserVirtioFeatures};
use vhost::vhost_user::{Frontend, Listener, VhostUserFrontend};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use vhost_user_backend::{VhostUserBackend, VhostUserDaemon, VringRwLock};
use vm_memory::{GuestMemoryAtomic, GuestMemoryMmap};
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::event::{new_event_consumer_and_notifier, EventConsumer, EventFlag, EventNotifier};
use vmm_sys_util::eventfd::EventFd;

#[derive(Clone)]
struct Device(Arc<Mutex<Sender<String>>>);

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
    fn handle_event(&self, event: u16, _: EventSet, vrings: &[VringRwLock], worker: usize) -> io::Result<()> {
        let seen = format!("event {event} in worker {worker} of {} queue(s)", vrings.len());
        self.0.lock().unwrap().send(seen).unwrap();
        Ok(())
    }
}

/// A daemon, and the front-end that is connected to it.
fn connect(device: Device) -> (VhostUserDaemon<Device>, Frontend) {
    let memory = GuestMemoryAtomic::new(GuestMemoryMmap::new());
    let mut daemon = VhostUserDaemon::new("finding".into(), device, memory).unwrap();
    let mut listener = Listener::new("socket", true).unwrap();
    let stream = UnixStream::connect("socket").unwrap();
    daemon.start(&mut listener).unwrap();
    (daemon, Frontend::from_stream(stream, 2))
}

fn main() {
    let (events, seen) = channel();
    let (daemon, mut front_end) = connect(Device(Arc::new(Mutex::new(events))));
    front_end.set_owner().unwrap();
    let features = front_end.get_features().unwrap();
    front_end.set_features(features).unwrap();
    let features = front_end.get_protocol_features().unwrap();
    front_end.set_protocol_features(features).unwrap();

    let path = "memory";
    fs::write(path, vec![0; 0x10000]).unwrap();
    let memory = File::options().read(true).write(true).open(path).unwrap();
    front_end
        .set_mem_table(&[VhostUserMemoryRegionInfo {
            guest_phys_addr: 0,
            memory_size: 0x10000,
            userspace_addr: 0x10_0000,
            mmap_offset: 0,
            mmap_handle: memory.as_raw_fd(),
        }])
        .unwrap();
    let ring = VringConfigData {
        queue_max_size: 16,
        queue_size: 16,
        flags: 0,
        desc_table_addr: 0x10_1000,
        used_ring_addr: 0x10_3000,
        avail_ring_addr: 0x10_2000,
        log_addr: None,
    };
    front_end.set_vring_num(1, 16).unwrap();
    front_end.set_vring_base(1, 0).unwrap();
    front_end.set_vring_addr(1, &ring).unwrap();
    let kick = EventFd::new(0).unwrap();
    front_end.set_vring_call(1, &EventFd::new(0).unwrap()).unwrap();
    front_end.set_vring_kick(1, &kick).unwrap();

    front_end.set_vring_enable(1, true).unwrap();
    println!("enabled: {}", seen.recv().unwrap());
    kick.write(1).unwrap();
    println!("kicked: {}", seen.recv().unwrap());
    drop(front_end);
    daemon.get_epoll_handlers().iter().for_each(|handler| handler.send_exit_event());
}
END

cat >expected <<'END'
enabled: event 0 in worker 1 of 1 queue(s)
kicked: event 0 in worker 1 of 1 queue(s)
END

cargo build --quiet
timeout 60 target/debug/finding >seen
if ! diff expected seen; then
    echo "CHANGED: handle_event() is called at other times, or with another number" >&2
    exit 1
fi
echo "As described: an enabled ring has an event without a kick, numbered within its worker"
