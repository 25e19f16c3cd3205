// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Between a front-end and crate vhost-user-backend: lets through what the library can be trusted with.
//!
//! The library takes any descriptor for kicks and calls, and any size of a queue, and says little of what it refuses. So each
//! message is looked at before. A message that is refused here ends the connection with a line.

use std::io;
use std::os::fd::OwnedFd;

use vhost::vhost_user::message::{
    FrontendReq, VhostUserProtocolFeatures, VhostUserU64, VhostUserVringAddr, VhostUserVringState,
};

use crate::os::eventfd;
use crate::spec::{EVENT_QUEUE, NUM_QUEUES, REQUEST_QUEUE};
use crate::transport::MAX_QUEUE_SIZE;
use crate::transport::link::HEADER;
use crate::transport::recorder::{Area, Recorder, read};

/// Why a message is refused.
#[derive(Debug, thiserror::Error)]
pub(super) enum Refused {
    /// A descriptor is no eventfd: it could block a thread of this process.
    #[error("a kick or call descriptor must be an eventfd: {0}")]
    Descriptor(#[from] io::Error),
    /// The library would wait for the descriptors for ever.
    #[error("this process has no room for the descriptors of a message (RLIMIT_NOFILE): {0}")]
    NoRoom(io::Error),
    /// virtio 1.3, § Split Virtqueues: a power of 2.
    #[error("queue {queue} of size {size}: sizes are powers of 2 up to {MAX_QUEUE_SIZE}")]
    QueueSize { queue: u32, size: u32 },
    /// No memory is shared.
    #[error(
        "the front-end shares no guest memory: give QEMU's guest a memory backend with share=on (-object \
         memory-backend-memfd,id=mem,size=SIZE,share=on -machine memory-backend=mem)"
    )]
    NoMemory,
    /// A ring is not in shared memory.
    #[error(
        "a ring of queue {queue} (front-end address {address:#x}) is in memory that the front-end does not share; it \
         shares the guest-physical addresses {shared}. All of guest memory must be shared: each memory backend of QEMU \
         needs share=on"
    )]
    PrivateRing {
        queue: u32,
        address: u64,
        shared: String,
    },
}

/// What the messages of a connection have said.
#[derive(Default)]
pub(super) struct Guard {
    recorder: Recorder,
    /// Queues that a message has named.
    mentioned: [bool; NUM_QUEUES],
    /// The line on the missing queue.
    said: bool,
}

impl Guard {
    /// For another daemon of the library.
    pub fn recorder(&self) -> &Recorder {
        &self.recorder
    }

    /// Whether the front-end has named the request queue and not the event queue so far, and no line has said so.
    pub fn misses_event_queue(&self) -> bool {
        let [requests, events] =
            [REQUEST_QUEUE, EVENT_QUEUE].map(|q| self.mentioned[usize::from(q)]);
        requests && !events && !self.said
    }

    /// Says, once, what a front-end lacks that names one queue only.
    pub fn say_what_is_missing(&mut self) {
        self.said = true;
        log::warn!(
            "the front-end has set up the request queue alone, so the guest finds no IOMMU: QEMU's \
             vhost-user-test-device-pci needs num_vqs=2"
        );
    }

    /// Looks at a message. One that is too short, or unknown, is left to the library, which refuses it.
    pub fn look(
        &mut self,
        header: &[u8; HEADER],
        body: &[u8],
        descriptors: &[OwnedFd],
    ) -> Result<(), Refused> {
        let request = header.first_chunk().map_or(0, |&r| u32::from_ne_bytes(r));
        let Ok(request) = FrontendReq::try_from(request) else {
            return Ok(());
        };
        check_room(descriptors)?;
        self.recorder.record(request, body);
        match request {
            FrontendReq::SET_PROTOCOL_FEATURES => look_at_protocol(body),
            FrontendReq::SET_VRING_NUM => {
                if let Some(state) = read::<VhostUserVringState>(body) {
                    self.mention(state.index.into());
                    check_size(state.index, state.num)?;
                }
            }
            FrontendReq::SET_VRING_ADDR => {
                if let Some(address) = read::<VhostUserVringAddr>(body) {
                    self.mention(address.index.into());
                    for part in [address.descriptor, address.used, address.available] {
                        self.check_ring(address.index, part)?;
                    }
                }
            }
            FrontendReq::SET_VRING_BASE | FrontendReq::SET_VRING_ENABLE => {
                if let Some(state) = read::<VhostUserVringState>(body) {
                    self.mention(state.index.into());
                }
            }
            FrontendReq::SET_VRING_KICK
            | FrontendReq::SET_VRING_CALL
            | FrontendReq::SET_VRING_ERR => {
                if let Some(value) = read::<VhostUserU64>(body) {
                    // vhost-user: the index is in the lowest eight bits.
                    self.mention(value.value & 0xff);
                }
                for descriptor in descriptors {
                    eventfd::check(descriptor)?;
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn mention(&mut self, queue: u64) {
        let queue = usize::try_from(queue).unwrap_or(usize::MAX);
        if let Some(mentioned) = self.mentioned.get_mut(queue) {
            *mentioned = true;
        }
    }

    fn check_ring(&self, queue: u32, address: u64) -> Result<(), Refused> {
        if self.recorder.areas().is_empty() {
            return Err(Refused::NoMemory);
        }
        let is_inside = |area: &Area| {
            address
                .checked_sub(area.user_address)
                .is_some_and(|offset| offset < area.length)
        };
        if self.recorder.areas().iter().any(is_inside) {
            return Ok(());
        }
        let shared: Vec<_> = self
            .recorder
            .areas()
            .iter()
            .map(|area| {
                let last = area.gpa.saturating_add(area.length.saturating_sub(1));
                format!("{:#x}-{last:#x}", area.gpa)
            })
            .collect();
        Err(Refused::PrivateRing {
            queue,
            address,
            shared: shared.join(", "),
        })
    }
}

/// Whether the library will have room for the descriptors: it receives them while they are open here. If it has none, its
/// receiving (vmm-sys-util 0.15) reports ENOBUFS although the bytes are gone, and crate vhost (0.18) waits for them.
fn check_room(descriptors: &[OwnedFd]) -> Result<(), Refused> {
    let duplicates = descriptors.iter().map(OwnedFd::try_clone);
    duplicates
        .collect::<io::Result<Vec<_>>>()
        .map(drop)
        .map_err(Refused::NoRoom)
}

fn look_at_protocol(body: &[u8]) {
    let config = VhostUserProtocolFeatures::CONFIG.bits();
    if read::<VhostUserU64>(body).is_some_and(|features| features.value & config == 0) {
        log::warn!(
            "the front-end cannot read the configuration of the device (it has not negotiated CONFIG), so the guest \
             finds no IOMMU: QEMU's vhost-user-test-device-pci needs config_size=40"
        );
    }
}

fn check_size(queue: u32, size: u32) -> Result<(), Refused> {
    let fits = usize::try_from(size).is_ok_and(|size| size <= MAX_QUEUE_SIZE);
    if fits && size.is_power_of_two() {
        return Ok(());
    }
    Err(Refused::QueueSize { queue, size })
}
