// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What one connection does: the answers to vhost-user messages, and the request worker.
//!
//! Locks, in this order: the request worker's own, the vring's, then the device's.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use vhost::vhost_user::message::{VhostUserProtocolFeatures, VhostUserVirtioFeatures};
use vhost_user_backend::{VhostUserBackend, VringState};
use virtio_bindings::bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::bindings::virtio_ring::{
    VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC,
};
use virtio_queue::QueueT;
use vm_memory::{GuestAddressSpace, GuestMemoryMmap};
use vmm_sys_util::epoll::EventSet;

use crate::device::Device;
use crate::host::MemoryRegion;
use crate::os::inherited;
use crate::spec::{EVENT_QUEUE, NUM_QUEUES, REQUEST_QUEUE};
use crate::transport::fault_worker::FaultShared;
use crate::transport::lifecycle::{Lifecycle, Resets};
use crate::transport::memory::Regions;
#[cfg(odd_bits)]
use crate::transport::odd_bits::{self, OddBatch};
use crate::transport::polling::Polling;
use crate::transport::requests::{DeviceBatch, Held, Served, Service};
use crate::transport::ring::{Ring, RingError};
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
    worker: Mutex<RequestWorker>,
    /// The vrings, once their workers have seen them.
    vrings: [OnceLock<Vring>; NUM_QUEUES],
    closing: AtomicBool,
    resets: Arc<Resets>,
    truncation_told: AtomicBool,
}

struct RequestWorker {
    held: Vec<Held>,
    polling: Polling,
    lifecycle: Lifecycle,
    /// The state of the vring when it was found broken: until the front-end changes it, it is left alone.
    broken_at: Option<u32>,
}

impl Backend {
    pub fn new(
        device: Arc<Device>,
        memory: Memory,
        faults: Arc<FaultShared>,
        poll: Duration,
        resets: Arc<Resets>,
    ) -> Self {
        Self {
            device,
            memory,
            faults,
            regions: Mutex::default(),
            worker: Mutex::new(RequestWorker {
                held: Vec::new(),
                polling: Polling::new(poll),
                lifecycle: Lifecycle::new(Arc::clone(&resets)),
                broken_at: None,
            }),
            vrings: [OnceLock::new(), OnceLock::new()],
            closing: AtomicBool::new(false),
            resets,
            truncation_told: AtomicBool::new(false),
        }
    }

    /// Makes the workers leave what they do.
    pub fn close(&self) {
        self.closing.store(true, Ordering::SeqCst);
    }

    /// The front-end is gone, and no worker runs any more: takes guest memory away.
    pub fn forget_memory(&self) {
        replace(&self.memory, GuestMemoryMmap::new());
        self.memory_changed();
    }

    fn worker(&self) -> MutexGuard<'_, RequestWorker> {
        self.worker.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn memory_changed(&self) {
        // A worker that looked at the memory before has let go of it after this.
        for vring in self.vrings.iter().filter_map(OnceLock::get) {
            vring.interrupt();
        }
        let memory = self.memory.memory();
        let mut regions = self.regions.lock().unwrap_or_else(PoisonError::into_inner);
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

    fn serve_requests(&self, vring: &Vring) {
        let mut worker = self.worker();
        loop {
            let mut state = vring.serve();
            let served = worker.serve(self, vring, &mut state);
            drop(state);
            match served {
                Some(Served::Interrupted) if !self.is_closing() => vring.stand_back(),
                Some(Served::Broken(error)) => {
                    worker.broken_at = Some(vring.changes());
                    if self.device.counters().rings_broken.increment_and_log() {
                        log::warn!(
                            "the request queue is left alone until it is started again: {error}"
                        );
                    }
                    return;
                }
                _ => return,
            }
        }
    }

    fn is_closing(&self) -> bool {
        self.closing.load(Ordering::Relaxed)
    }
}

impl RequestWorker {
    /// `None` when the queue is not to be served.
    fn serve(
        &mut self,
        backend: &Backend,
        vring: &Vring,
        state: &mut VringState<Memory>,
    ) -> Option<Served> {
        if !state.is_enabled() || !state.get_queue().ready() || backend.is_closing() {
            return None;
        }
        let memory = backend.memory.memory();
        if self
            .lifecycle
            .started(vring.starts(), state.get_queue(), &memory, &backend.device)
        {
            backend.faults.wake();
        }
        if self.broken_at == Some(vring.changes()) {
            return None;
        }
        let notify = || {
            if let Err(error) = state.signal_used_queue() {
                log::debug!("the driver cannot be notified of requests: {error}");
            }
        };
        let mut service = Service {
            held: &mut self.held,
            polling: &mut self.polling,
            notify,
            interrupted: || vring.is_wanted() || backend.is_closing(),
        };
        let batch = || DeviceBatch::new(&backend.device);
        #[cfg(odd_bits)]
        let batch = || OddBatch::new(batch());
        let result: Result<_, RingError> = Ring::new(&memory, state.get_queue()).map(|mut ring| {
            let served = service.run(&mut ring, batch, || backend.faults.wake());
            (ring.saved(), served)
        });
        match result {
            Ok((saved, served)) => {
                saved.restore(state.get_queue_mut());
                Some(served)
            }
            Err(error) => Some(Served::Broken(error)),
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
        self.resets.driver_comes();
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
        self.worker().lifecycle.reset();
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
            // The worker has left, or is about to.
            vring.interrupt();
            let mut worker = self.worker();
            let state = vring.serve();
            let memory = self.memory.memory();
            worker
                .lifecycle
                .stopped(vring.starts(), state.get_queue(), &memory, &self.device);
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
            self.serve_requests(vring);
        } else {
            self.faults.set_vring(Some(vring));
        }
        Ok(())
    }
}
