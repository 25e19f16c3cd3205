// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The answers to vhost-user messages, on the connection's own thread.
//!
//! A message that is refused ends the connection: crate vhost (0.18) answers it, where it wants an answer, and reports the
//! error to its caller, and front-ends do not go on after one anyway.
//!
//! Locks, in this order: the request worker's own, a vring's, then the device's.

use std::fs::File;
use std::io;
use std::sync::Arc;

use vhost::VhostUserMemoryRegionBase;
use vhost::vhost_user::message::{
    VhostTransferStateDirection, VhostTransferStatePhase, VhostUserConfigFlags, VhostUserInflight,
    VhostUserLog, VhostUserMemoryRegion, VhostUserProtocolFeatures, VhostUserShMemConfig,
    VhostUserSharedMsg, VhostUserSingleMemoryRegion, VhostUserVirtioFeatures,
    VhostUserVringAddrFlags, VhostUserVringState,
};
use vhost::vhost_user::{Error, GpuBackend, Result, VhostUserBackendReqHandlerMut};
use virtio_bindings::bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::bindings::virtio_ring::{
    VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC,
};
use virtio_queue::QueueT;
use vm_memory::{Bytes, GuestAddress};

use crate::device::Device;
use crate::spec::{EVENT_QUEUE, NUM_QUEUES, REQUEST_QUEUE};
use crate::transport::MAX_QUEUE_SIZE;
use crate::transport::driver_life::DriverLife;
use crate::transport::fault_worker::FaultShared;
use crate::transport::memory::{MemoryRefused, SharedMemory};
#[cfg(odd_bits)]
use crate::transport::odd_bits;
use crate::transport::request_worker::RequestShared;
use crate::transport::vring::{State, Vring};

/// The most regions of guest memory. QEMU's own limit is lower on most machines.
const MAX_MEMORY_REGIONS: u64 = 509;

/// A connection, as its messages see it.
pub(super) struct Backend {
    device: Arc<Device>,
    memory: SharedMemory,
    requests: Arc<RequestShared>,
    faults: Arc<FaultShared>,
    vrings: [Vring; NUM_QUEUES],
    /// Queues that a message has named.
    mentioned: [bool; NUM_QUEUES],
    driver_life: Arc<DriverLife>,
    owned: bool,
    /// Negotiated.
    features: u64,
}

impl Backend {
    pub fn new(
        device: Arc<Device>,
        memory: SharedMemory,
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
            mentioned: [false; NUM_QUEUES],
            driver_life,
            owned: false,
            features: 0,
        }
    }

    /// The front-end has set up the request queue and not the event queue.
    pub fn misses_event_queue(&self) -> bool {
        self.mentioned[usize::from(REQUEST_QUEUE)] && !self.mentioned[usize::from(EVENT_QUEUE)]
    }

    /// The vring that a message names.
    fn vring(&mut self, index: u32) -> Result<Vring> {
        let index = index as usize;
        let vring = self.vrings.get(index).ok_or(Error::InvalidParam)?;
        self.mentioned[index] = true;
        Ok(vring.clone())
    }

    /// Changes a vring. Its worker looks at it again.
    fn change<T>(&mut self, index: u32, change: impl FnOnce(&mut State) -> T) -> Result<T> {
        let changed = self.vring(index)?.change(change);
        self.wake();
        changed.map_err(Error::ReqHandlerError)
    }

    /// Changes both vrings in the same way.
    fn change_all(&mut self, change: impl Fn(&mut State)) -> Result<()> {
        for vring in &self.vrings {
            vring.change(&change).map_err(Error::ReqHandlerError)?;
        }
        self.wake();
        Ok(())
    }

    fn wake(&self) {
        self.requests.wake();
        self.faults.wake();
    }

    fn memory_changed(&mut self, changed: std::result::Result<(), MemoryRefused>) -> Result<()> {
        changed.map_err(|refused| Error::ReqHandlerError(io::Error::other(refused)))?;
        self.tell_device();
        // A ring may be in memory by now.
        self.change_all(|_| ())
    }

    fn tell_device(&mut self) {
        // A worker that looked at the memory before has let go of it after this.
        for vring in &self.vrings {
            vring.look(|_| ());
        }
        let difference = self.memory.difference();
        if difference.removed.is_empty() && difference.added.is_empty() {
            return;
        }
        let result =
            self.device
                .update_memory(&self.memory.map(), &difference.removed, &difference.added);
        for error in result.err().into_iter().flatten() {
            // Endpoints cannot reach the new memory, or a part of it. A refusal would end the connection, and with it
            // the guest.
            log::error!("{error}; endpoints do not reach it, or not all of it");
        }
    }
}

impl Drop for Backend {
    /// The front-end is gone: takes guest memory away.
    fn drop(&mut self) {
        self.memory.clear();
        self.tell_device();
    }
}

impl VhostUserBackendReqHandlerMut for Backend {
    fn set_owner(&mut self) -> Result<()> {
        if std::mem::replace(&mut self.owned, true) {
            return Err(Error::InvalidOperation("SET_OWNER came already"));
        }
        Ok(())
    }

    fn reset_owner(&mut self) -> Result<()> {
        self.owned = false;
        self.features = 0;
        Ok(())
    }

    fn reset_device(&mut self) -> Result<()> {
        self.change_all(|state| state.enabled = false)?;
        self.features = 0;
        self.requests.reset();
        self.device.reset();
        self.faults.wake();
        Ok(())
    }

    fn get_features(&mut self) -> Result<u64> {
        Ok(self.device.offered_features().bits()
            | 1 << VIRTIO_F_VERSION_1
            | 1 << VIRTIO_RING_F_EVENT_IDX
            | 1 << VIRTIO_RING_F_INDIRECT_DESC
            | VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits())
    }

    fn set_features(&mut self, features: u64) -> Result<()> {
        if features & !self.get_features()? != 0 {
            return Err(Error::InvalidParam);
        }
        self.features = features;
        // vhost-user: without protocol features there is no SET_VRING_ENABLE.
        let enabled = features & VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits() == 0;
        let event_idx = features & 1 << VIRTIO_RING_F_EVENT_IDX != 0;
        self.driver_life.driver_comes();
        self.device.negotiate(features);
        self.change_all(|state| {
            state.enabled |= enabled;
            state.queue.set_event_idx(event_idx);
        })
    }

    fn get_protocol_features(&mut self) -> Result<VhostUserProtocolFeatures> {
        Ok(VhostUserProtocolFeatures::CONFIG
            | VhostUserProtocolFeatures::REPLY_ACK
            | VhostUserProtocolFeatures::MQ
            | VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS
            | VhostUserProtocolFeatures::RESET_DEVICE)
    }

    fn set_protocol_features(&mut self, features: u64) -> Result<()> {
        if features & VhostUserProtocolFeatures::CONFIG.bits() == 0 {
            log::warn!(
                "the front-end cannot read the configuration of the device (it has not negotiated CONFIG), so the guest \
                 finds no IOMMU: QEMU's vhost-user-test-device-pci needs config_size=40"
            );
        }
        Ok(())
    }

    fn get_queue_num(&mut self) -> Result<u64> {
        Ok(NUM_QUEUES as u64)
    }

    fn get_max_mem_slots(&mut self) -> Result<u64> {
        Ok(MAX_MEMORY_REGIONS)
    }

    fn set_mem_table(
        &mut self,
        regions: &[VhostUserMemoryRegion],
        files: Vec<File>,
        _postcopy_listening: Option<bool>,
    ) -> Result<Option<Vec<VhostUserMemoryRegionBase>>> {
        let changed = self.memory.set(regions, files);
        self.memory_changed(changed).map(|()| None)
    }

    fn add_mem_region(
        &mut self,
        region: &VhostUserSingleMemoryRegion,
        file: File,
        _postcopy_listening: Option<bool>,
    ) -> Result<Option<VhostUserMemoryRegionBase>> {
        let changed = self.memory.add(region, file);
        self.memory_changed(changed).map(|()| None)
    }

    fn remove_mem_region(&mut self, region: &VhostUserSingleMemoryRegion) -> Result<()> {
        let changed = self.memory.remove(region);
        self.memory_changed(changed)
    }

    fn set_vring_num(&mut self, index: u32, size: u32) -> Result<()> {
        // virtio 1.3, § Split Virtqueues: a power of 2.
        let size = u16::try_from(size)
            .ok()
            .filter(|&size| size.is_power_of_two() && usize::from(size) <= MAX_QUEUE_SIZE)
            .ok_or_else(|| {
                Error::ReqHandlerError(io::Error::other(format!(
                    "queue {index} of size {size}: sizes are powers of 2 up to {MAX_QUEUE_SIZE}"
                )))
            })?;
        self.change(index, |state| state.queue.set_size(size))
    }

    fn set_vring_addr(
        &mut self,
        index: u32,
        _flags: VhostUserVringAddrFlags,
        descriptors: u64,
        used: u64,
        available: u64,
        _log: u64,
    ) -> Result<()> {
        let address = |address| {
            self.memory
                .ring_address(index, address)
                .map(GuestAddress)
                .map_err(|refused| Error::ReqHandlerError(io::Error::other(refused)))
        };
        let (descriptors, available, used) =
            (address(descriptors)?, address(available)?, address(used)?);
        // The driver's view of the used ring is where the device goes on.
        let used_index: u16 = used
            .0
            .checked_add(2)
            .and_then(|index| self.memory.map().read_obj(GuestAddress(index)).ok())
            .ok_or(Error::InvalidParam)?;
        self.change(index, |state| {
            let queue = &mut state.queue;
            queue.try_set_desc_table_address(descriptors)?;
            queue.try_set_avail_ring_address(available)?;
            queue.try_set_used_ring_address(used)?;
            queue.set_next_used(u16::from_le(used_index));
            Ok(())
        })?
        .map_err(|_: virtio_queue::Error| Error::InvalidParam)
    }

    fn set_vring_base(&mut self, index: u32, base: u32) -> Result<()> {
        self.change(index, |state| state.queue.set_next_avail(base as u16))
    }

    fn get_vring_base(&mut self, index: u32) -> Result<VhostUserVringState> {
        self.change(index, |state| state.queue.set_ready(false))?;
        if index == u32::from(REQUEST_QUEUE) {
            self.requests.stopped();
        }
        let vring = self.vring(index)?;
        let base = vring.look(|state| state.queue.next_avail());
        vring.stop().map_err(Error::ReqHandlerError)?;
        Ok(VhostUserVringState::new(index, base.into()))
    }

    fn set_vring_kick(&mut self, index: u8, kick: Option<File>) -> Result<()> {
        let set = self.vring(index.into())?.set_kick(kick);
        self.wake();
        set.map_err(Error::ReqHandlerError)
    }

    fn set_vring_call(&mut self, index: u8, call: Option<File>) -> Result<()> {
        let set = self.vring(index.into())?.set_call(call);
        self.wake();
        set.map_err(Error::ReqHandlerError)
    }

    /// Errors of a ring are logged and counted; the descriptor for them is closed.
    fn set_vring_err(&mut self, index: u8, _error: Option<File>) -> Result<()> {
        self.vring(index.into()).map(drop)
    }

    fn set_vring_enable(&mut self, index: u32, enable: bool) -> Result<()> {
        let needed = VhostUserVirtioFeatures::PROTOCOL_FEATURES;
        if self.features & needed.bits() == 0 {
            return Err(Error::InactiveFeature(needed));
        }
        self.change(index, |state| state.enabled = enable)
    }

    /// Exactly what was asked for, with zeros beyond the end: anything else is an error to a front-end.
    fn get_config(
        &mut self,
        offset: u32,
        size: u32,
        _flags: VhostUserConfigFlags,
    ) -> Result<Vec<u8>> {
        let config = self.device.config_space();
        #[cfg(odd_bits)]
        let config = odd_bits::config(config);
        Ok(config
            .get(offset as usize..)
            .unwrap_or_default()
            .iter()
            .copied()
            .chain(std::iter::repeat(0))
            .take(size as usize)
            .collect())
    }

    fn set_config(
        &mut self,
        offset: u32,
        bytes: &[u8],
        _flags: VhostUserConfigFlags,
    ) -> Result<()> {
        self.device.write_config(offset as usize, bytes);
        Ok(())
    }

    fn set_gpu_socket(&mut self, _gpu: GpuBackend) -> Result<()> {
        Err(Error::InvalidOperation("the device is no GPU"))
    }

    fn get_shared_object(&mut self, _uuid: VhostUserSharedMsg) -> Result<File> {
        Err(Error::InvalidOperation("there are no shared objects"))
    }

    fn get_inflight_fd(
        &mut self,
        _inflight: &VhostUserInflight,
    ) -> Result<(VhostUserInflight, File)> {
        Err(Error::InvalidOperation("INFLIGHT_SHMFD is not offered"))
    }

    fn set_inflight_fd(&mut self, _inflight: &VhostUserInflight, _file: File) -> Result<()> {
        Err(Error::InvalidOperation("INFLIGHT_SHMFD is not offered"))
    }

    fn set_device_state_fd(
        &mut self,
        _direction: VhostTransferStateDirection,
        _phase: VhostTransferStatePhase,
        _file: File,
    ) -> Result<Option<File>> {
        Err(Error::InvalidOperation("the device cannot be migrated"))
    }

    fn check_device_state(&mut self) -> Result<()> {
        Err(Error::InvalidOperation("the device cannot be migrated"))
    }

    fn get_shmem_config(&mut self) -> Result<VhostUserShMemConfig> {
        Err(Error::InvalidOperation("SHMEM is not offered"))
    }

    fn set_log_base(&mut self, _log: &VhostUserLog, _file: File) -> Result<()> {
        Err(Error::InvalidOperation("LOG_SHMFD is not offered"))
    }
}
