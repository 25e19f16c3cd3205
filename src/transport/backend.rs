// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The device and its queues, as crate vhost-user-backend calls them from the connection's own thread.
//!
//! An error ends the connection: the library answers the message, where an answer is wanted, and stops. Front-ends do not go
//! on after one anyway.
//!
//! Locks, in this order: guest memory, the request worker's own, a vring's, then the device's.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;
use vhost::vhost_user::message::{VhostUserProtocolFeatures, VhostUserVirtioFeatures};
use vhost_user_backend::VhostUserBackend;
use virtio_bindings::bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::bindings::virtio_ring::{
    VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC,
};
use vm_memory::GuestAddressSpace;
use vmm_sys_util::epoll::EventSet;

use crate::device::Device;
use crate::spec::{NUM_QUEUES, REQUEST_QUEUE};
use crate::transport::driver_life::DriverLife;
use crate::transport::fault_worker::FaultShared;
use crate::transport::memory::SharedMemory;
#[cfg(odd_bits)]
use crate::transport::odd_bits;
use crate::transport::request_worker::RequestShared;
use crate::transport::vring::Vring;
use crate::transport::{MAX_QUEUE_SIZE, Memory};

/// A connection, as its messages see it.
pub(super) struct Backend {
    device: Arc<Device>,
    memory: Arc<Mutex<SharedMemory>>,
    requests: Arc<RequestShared>,
    faults: Arc<FaultShared>,
    vrings: [Vring; NUM_QUEUES],
    driver_life: Arc<DriverLife>,
    /// Messages say again what the device knows.
    replays: AtomicBool,
}

impl Backend {
    pub fn new(
        device: Arc<Device>,
        memory: Arc<Mutex<SharedMemory>>,
        requests: Arc<RequestShared>,
        faults: Arc<FaultShared>,
        events: Vring,
        driver_life: Arc<DriverLife>,
    ) -> Self {
        let vrings = [requests.vring().clone(), events];
        Self {
            device,
            memory,
            requests,
            faults,
            vrings,
            driver_life,
            replays: AtomicBool::new(false),
        }
    }

    /// From now on messages are those of a replay: the library learns what it has to know, the device nothing.
    pub fn begin_replay(&self) {
        self.replays.store(true, Ordering::SeqCst);
    }

    /// The next message is the front-end's.
    pub fn end_replay(&self) {
        self.replays.store(false, Ordering::SeqCst);
        // The same memory as before, in other mappings of this process.
        self.tell_device(&mut self.memory.lock());
    }

    fn replays(&self) -> bool {
        self.replays.load(Ordering::SeqCst)
    }

    /// The queues, by index.
    pub fn vrings(&self) -> &[Vring; NUM_QUEUES] {
        &self.vrings
    }

    fn tell_device(&self, memory: &mut SharedMemory) {
        // A worker that looked at the memory before has let go of it after this.
        for vring in &self.vrings {
            vring.look(|_| ());
        }
        memory.tell(&self.device);
    }

    /// Has the workers look at their queues again.
    fn wake(&self) {
        self.requests.wake();
        self.faults.wake();
    }
}

impl VhostUserBackend for Backend {
    type Bitmap = ();
    type Vring = Vring;

    fn num_queues(&self) -> usize {
        NUM_QUEUES
    }

    fn max_queue_size(&self) -> usize {
        MAX_QUEUE_SIZE
    }

    fn features(&self) -> u64 {
        self.device.offered_features().bits()
            | 1 << VIRTIO_F_VERSION_1
            | 1 << VIRTIO_RING_F_EVENT_IDX
            | 1 << VIRTIO_RING_F_INDIRECT_DESC
            | VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits()
    }

    fn acked_features(&self, features: u64) {
        if self.replays() {
            return;
        }
        self.driver_life.driver_comes();
        self.device.negotiate(features);
        self.wake();
    }

    fn protocol_features(&self) -> VhostUserProtocolFeatures {
        VhostUserProtocolFeatures::CONFIG
            | VhostUserProtocolFeatures::REPLY_ACK
            | VhostUserProtocolFeatures::MQ
            | VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS
            | VhostUserProtocolFeatures::RESET_DEVICE
    }

    /// The library has told the vrings.
    fn set_event_idx(&self, _enabled: bool) {}

    fn reset_device(&self) {
        self.requests.reset();
        self.device.reset();
        self.faults.wake();
    }

    /// Exactly what was asked for, with zeros beyond the end: anything else is an error to a front-end.
    fn get_config(&self, offset: u32, size: u32) -> Vec<u8> {
        let config = self.device.config_space();
        #[cfg(odd_bits)]
        let config = odd_bits::config(config);
        config
            .get(offset as usize..)
            .unwrap_or_default()
            .iter()
            .copied()
            .chain(std::iter::repeat(0))
            .take(size as usize)
            .collect()
    }

    fn set_config(&self, offset: u32, bytes: &[u8]) -> io::Result<()> {
        self.device.write_config(offset as usize, bytes);
        Ok(())
    }

    fn update_memory(&self, map: Memory) -> io::Result<()> {
        let mut memory = self.memory.lock();
        memory.set(&map.memory())?;
        if self.replays() {
            // There is more to come, and what is not there yet has not gone.
            return Ok(());
        }
        self.tell_device(&mut memory);
        drop(memory);
        // A ring may be in memory by now.
        for vring in &self.vrings {
            vring.change(|_| ())?;
        }
        Ok(())
    }

    /// None of the library's own: they read kicks, which a front-end can make block, and keep waiting for a kick
    /// descriptor that was replaced.
    fn queues_per_thread(&self) -> Vec<u64> {
        Vec::new()
    }

    fn stop_vring(&self, queue: u32) -> io::Result<()> {
        if queue == u32::from(REQUEST_QUEUE) {
            self.requests.stopped();
        }
        Ok(())
    }

    fn handle_event(
        &self,
        _event: u16,
        _set: EventSet,
        _vrings: &[Vring],
        _thread: usize,
    ) -> io::Result<()> {
        Ok(())
    }
}
