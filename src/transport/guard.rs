// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Between a front-end and crate vhost-user-backend: carries messages, and lets through what the library can be trusted with.
//!
//! The library (0.24) takes connections from a listener only, so it gets one, and two threads carry messages and
//! descriptors between its one connection and the front-end's. They carry messages whole, one at a time: the library takes
//! descriptors with the header of the message that they belong to, and does not wait for the rest of one.
//!
//! The library takes any descriptor for kicks and calls, and any size of a queue, and says little of what it refuses. So each
//! message is looked at before. A message that is refused here ends the connection with a line.

use std::io::{self, Read, Write};
use std::mem::size_of;
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use vhost::vhost_user::message::{
    FrontendReq, VhostUserMemory, VhostUserMemoryRegion, VhostUserProtocolFeatures,
    VhostUserSingleMemoryRegion, VhostUserU64, VhostUserVringAddr, VhostUserVringState,
};
use vm_memory::ByteValued;

use crate::os::{eventfd, relay};
use crate::spec::{EVENT_QUEUE, NUM_QUEUES, REQUEST_QUEUE};
use crate::transport::MAX_QUEUE_SIZE;

/// Length in bytes of a message's header: request, flags, and length of the rest, four bytes each.
const HEADER: usize = 12;

/// The longest rest of a message (MAX_MSG_SIZE of crate vhost).
const MAX_REST: usize = 4096;

/// Bytes of answers carried at once. They need not come in one piece.
const BUFFER: usize = 4096;

/// How long a front-end may take from the set-up of one queue to that of the next, before a line says what it may lack.
const QUEUE_PAUSE: Timespec = Timespec {
    tv_sec: 1,
    tv_nsec: 0,
};

/// Why a message is refused.
#[derive(Debug, thiserror::Error)]
enum Refused {
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

/// A listener at which the front-end waits.
///
/// # Errors
/// A descriptor or a thread cannot be made.
pub(super) fn listen(front_end: UnixStream) -> io::Result<UnixListener> {
    let (listener, ours) = relay::listen()?;
    let (from, to) = (front_end.try_clone()?, ours.try_clone()?);
    relay::spawn("vhost-user in", move || carry_messages(&from, &to))?;
    relay::spawn("vhost-user out", move || carry_answers(ours, front_end))?;
    Ok(listener)
}

/// From the front-end to the library, with descriptors.
fn carry_messages(from: &UnixStream, to: &UnixStream) {
    let mut guard = Guard::default();
    let mut message = Vec::with_capacity(HEADER + MAX_REST);
    loop {
        if guard.misses_event_queue() && !is_readable(from) {
            guard.said = true;
            log::warn!(
                "the front-end has set up the request queue alone, so the guest finds no IOMMU: QEMU's \
                 vhost-user-test-device-pci needs num_vqs=2"
            );
        }
        let descriptors = match relay::receive(from, &mut message, HEADER, rest) {
            Ok(descriptors) => descriptors,
            Err(error) => {
                log::warn!("the front-end is disconnected: {error}");
                break;
            }
        };
        let Some((header, body)) = message.split_first_chunk::<HEADER>() else {
            break;
        };
        if let Err(refused) = guard.look(header, body, &descriptors) {
            log::warn!("the front-end is disconnected: {refused}");
            break;
        }
        if relay::send(to, &message, &descriptors).is_err() {
            break;
        }
    }
    relay::end(from, to);
}

/// The length of the rest of a message. One that is too long is passed on without it: the library refuses it.
fn rest(header: &[u8]) -> io::Result<usize> {
    let length = header.last_chunk().map_or(0, |&l| u32::from_ne_bytes(l));
    let rest = usize::try_from(length).unwrap_or(usize::MAX);
    Ok(if rest <= MAX_REST { rest } else { 0 })
}

/// From the library to the front-end. No answer has descriptors with the features that we offer.
fn carry_answers(mut from: UnixStream, mut to: UnixStream) {
    let mut buffer = [0; BUFFER];
    while let Ok(length @ 1..) = from.read(&mut buffer) {
        if to
            .write_all(buffer.get(..length).unwrap_or_default())
            .is_err()
        {
            break;
        }
    }
    relay::end(&from, &to);
}

/// Whether a message comes within a short time.
fn is_readable(from: &UnixStream) -> bool {
    let mut descriptors = [PollFd::new(from, PollFlags::IN)];
    poll(&mut descriptors, Some(&QUEUE_PAUSE)) != Ok(0)
}

/// What the messages of a connection have said.
#[derive(Default)]
struct Guard {
    areas: Vec<Area>,
    /// Queues that a message has named.
    mentioned: [bool; NUM_QUEUES],
    /// The line on the missing queue.
    said: bool,
}

/// Where the front-end has a region mapped: it names the addresses of rings by that.
#[derive(Clone, Copy)]
struct Area {
    user_address: u64,
    gpa: u64,
    length: u64,
}

impl Area {
    fn new(region: &VhostUserMemoryRegion) -> Self {
        Self {
            user_address: region.user_addr,
            gpa: region.guest_phys_addr,
            length: region.memory_size,
        }
    }
}

impl Guard {
    fn misses_event_queue(&self) -> bool {
        let [requests, events] =
            [REQUEST_QUEUE, EVENT_QUEUE].map(|q| self.mentioned[usize::from(q)]);
        requests && !events && !self.said
    }

    /// Looks at a message. One that is too short, or unknown, is left to the library, which refuses it.
    fn look(
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
        match request {
            FrontendReq::SET_PROTOCOL_FEATURES => look_at_protocol(body),
            FrontendReq::SET_MEM_TABLE => self.areas = table(body),
            FrontendReq::ADD_MEM_REG => {
                if let Some(region) = read::<VhostUserSingleMemoryRegion>(body) {
                    self.areas.push(Area::new(&region));
                }
            }
            FrontendReq::REM_MEM_REG => {
                if let Some(region) = read::<VhostUserSingleMemoryRegion>(body) {
                    let gpa = region.guest_phys_addr;
                    self.areas.retain(|area| area.gpa != gpa);
                }
            }
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
        if self.areas.is_empty() {
            return Err(Refused::NoMemory);
        }
        let is_inside = |area: &Area| {
            address
                .checked_sub(area.user_address)
                .is_some_and(|offset| offset < area.length)
        };
        if self.areas.iter().any(is_inside) {
            return Ok(());
        }
        let shared: Vec<_> = self
            .areas
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

/// The regions of SET_MEM_TABLE: as many as its head says and there are.
fn table(body: &[u8]) -> Vec<Area> {
    let Some(head) = read::<VhostUserMemory>(body) else {
        return Vec::new();
    };
    let regions = body.get(size_of::<VhostUserMemory>()..).unwrap_or_default();
    regions
        .chunks_exact(size_of::<VhostUserMemoryRegion>())
        .take(usize::try_from(head.num_regions).unwrap_or(usize::MAX))
        .filter_map(read::<VhostUserMemoryRegion>)
        .map(|region| Area::new(&region))
        .collect()
}

/// The structure that bytes begin with.
fn read<T: ByteValued>(bytes: &[u8]) -> Option<T> {
    T::read_exact_from(bytes).ok()
}
