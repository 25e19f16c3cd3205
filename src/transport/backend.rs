// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What one connection does: the answers to vhost-user messages.
//!
//! Locks, in this order: the request worker's own, the vring's, then the device's.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use parking_lot::Mutex;
use vhost::vhost_user::message::{VhostUserProtocolFeatures, VhostUserVirtioFeatures};
use vhost_user_backend::VhostUserBackend;
use virtio_bindings::bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::bindings::virtio_ring::{
    VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC,
};
use vm_memory::{GuestAddressSpace, GuestMemoryMmap};
use vmm_sys_util::epoll::EventSet;

use crate::device::Device;
use crate::host::MemoryRegion;
use crate::os::inherited;
use crate::spec::{EVENT_QUEUE, NUM_QUEUES, REQUEST_QUEUE};
use crate::transport::driver_life::DriverLife;
use crate::transport::fault_worker::FaultShared;
use crate::transport::memory::Regions;
#[cfg(odd_bits)]
use crate::transport::odd_bits;
use crate::transport::request_worker::RequestWorker;
use crate::transport::vring::Vring;
use crate::transport::{MAX_QUEUE_SIZE, Memory};

/// The token of the descriptor that ends a worker thread. The library has those up to the number of queues.
pub(super) const EXIT: u16 = NUM_QUEUES as u16 + 1;

/// A connection.
pub(super) struct Backend {
    device: Arc<Device>,
    memory: Memory,
    faults: Arc<FaultShared>,
    regions: Mutex<Regions>,
    requests: RequestWorker,
    /// The vrings, once their workers have seen them.
    vrings: [OnceLock<Vring>; NUM_QUEUES],
    driver_life: Arc<DriverLife>,
    truncation_told: AtomicBool,
}

impl Backend {
    pub fn new(
        device: Arc<Device>,
        memory: Memory,
        faults: Arc<FaultShared>,
        poll: Duration,
        driver_life: Arc<DriverLife>,
    ) -> Self {
        let requests = RequestWorker::new(
            Arc::clone(&device),
            memory.clone(),
            Arc::clone(&faults),
            poll,
            Arc::clone(&driver_life),
        );
        Self {
            device,
            memory,
            faults,
            regions: Mutex::default(),
            requests,
            vrings: [OnceLock::new(), OnceLock::new()],
            driver_life,
            truncation_told: AtomicBool::new(false),
        }
    }

    /// Makes the workers leave what they do.
    pub fn close(&self) {
        self.requests.close();
    }

    /// The front-end is gone, and no worker runs any more: takes guest memory away.
    pub fn forget_memory(&self) {
        replace(&self.memory, GuestMemoryMmap::new());
        self.memory_changed();
    }

    fn memory_changed(&self) {
        // A worker that looked at the memory before has let go of it after this.
        for vring in self.vrings.iter().filter_map(OnceLock::get) {
            vring.interrupt();
        }
        let memory = self.memory.memory();
        let mut regions = self.regions.lock();
        let difference = regions.update(&memory);
        if difference.removed.is_empty() && difference.added.is_empty() {
            return;
        }
        self.warn_of_truncation(&difference.added);
        let result = self
            .device
            .update_memory(&memory, &difference.removed, &difference.added);
        for error in result.err().into_iter().flatten() {
            // Endpoints cannot reach the new memory, or a part of it. The library (0.24) ends the connection when a
            // message is refused, and with it the guest.
            log::error!("{error}; endpoints do not reach it, or not all of it");
        }
    }

    /// Says, once a connection, what a front-end that truncates its memory would do to this process.
    fn warn_of_truncation(&self, added: &[MemoryRegion]) {
        let open = |region: &&MemoryRegion| {
            let file = region.file.as_ref();
            file.is_some_and(|(file, _)| inherited::can_shrink(file))
        };
        if let Some(region) = added.iter().find(open)
            && !self.truncation_told.swap(true, Ordering::Relaxed)
        {
            log::warn!(
                "guest memory at {} is a file that can be truncated, which would end this process (SIGBUS): seal it \
                 against that, as QEMU's memory-backend-memfd does",
                region.gpa
            );
        }
    }
}

fn replace(memory: &Memory, map: GuestMemoryMmap) {
    match memory.lock() {
        Ok(guard) => guard.replace(map),
        Err(poisoned) => poisoned.into_inner().replace(map),
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
        self.driver_life.driver_comes();
        self.device.negotiate(features);
    }

    fn protocol_features(&self) -> VhostUserProtocolFeatures {
        VhostUserProtocolFeatures::CONFIG
            | VhostUserProtocolFeatures::REPLY_ACK
            | VhostUserProtocolFeatures::MQ
            | VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS
            | VhostUserProtocolFeatures::RESET_DEVICE
    }

    fn reset_device(&self) {
        self.requests.reset();
        self.device.reset();
        self.faults.wake();
    }

    /// The library tells the vrings, and that is enough.
    fn set_event_idx(&self, _enabled: bool) {}

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

    fn update_memory(&self, _memory: Memory) -> io::Result<()> {
        self.memory_changed();
        Ok(())
    }

    fn queues_per_thread(&self) -> Vec<u64> {
        vec![1 << REQUEST_QUEUE, 1 << EVENT_QUEUE]
    }

    /// The queue does not run any more: the library has taken the vring away from its worker.
    fn stop_vring(&self, index: u32) -> io::Result<()> {
        if index == u32::from(REQUEST_QUEUE)
            && let Some(vring) = self.vrings[0].get()
        {
            self.requests.stopped(vring);
        }
        Ok(())
    }

    /// An error ends the thread, so there is one only to end it.
    fn handle_event(
        &self,
        event: u16,
        _events: EventSet,
        vrings: &[Vring],
        thread: usize,
    ) -> io::Result<()> {
        if event == EXIT {
            return Err(io::ErrorKind::ConnectionAborted.into());
        }
        // Each thread has one queue.
        let (Some(vring), Some(known)) = (vrings.first(), self.vrings.get(thread)) else {
            return Ok(());
        };
        let vring = known.get_or_init(|| vring.clone());
        if thread == usize::from(REQUEST_QUEUE) {
            self.requests.serve(vring);
        } else {
            self.faults.set_vring(Some(vring));
        }
        Ok(())
    }
}
