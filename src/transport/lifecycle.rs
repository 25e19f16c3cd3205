// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Reset or pause? A front-end stops and starts the queues for both and says nothing else, so it is read off the
//! request queue: a driver that goes on does so where the queue stopped, and a new one begins at 0.

use std::sync::atomic::Ordering;

use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use crate::device::Device;

/// What is known of the request queue's starts and stops on a connection.
#[derive(Default)]
pub(super) struct Lifecycle {
    /// Starts of the ring that were looked at.
    starts: u32,
    stopped: Option<Position>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Position {
    base: u16,
    /// Descriptor table, available ring, used ring.
    rings: [u64; 3],
}

impl Position {
    fn of(queue: &Queue) -> Self {
        Self {
            base: queue.next_avail(),
            rings: [queue.desc_table(), queue.avail_ring(), queue.used_ring()],
        }
    }
}

impl Lifecycle {
    /// Called whenever the queue runs. At the first call for a start, tells the device whether it is a new one, and
    /// returns true.
    pub fn started(
        &mut self,
        starts: u32,
        queue: &Queue,
        memory: &GuestMemoryMmap,
        device: &Device,
    ) -> bool {
        if self.starts == starts {
            return false;
        }
        self.starts = starts;
        // The first start of a connection finds the device as new.
        if let Some(stopped) = self.stopped.take() {
            if continues(stopped, queue, memory) {
                device.resume();
            } else {
                device.reset();
            }
        }
        true
    }

    /// The queue has stopped. It may be that nobody has looked at its start yet.
    pub fn stopped(
        &mut self,
        starts: u32,
        queue: &Queue,
        memory: &GuestMemoryMmap,
        device: &Device,
    ) {
        self.started(starts, queue, memory, device);
        if starts != 0 {
            self.stopped = Some(Position::of(queue));
            device.suspend();
        }
    }

    /// The device was reset: the next start has nothing to find out.
    pub fn reset(&mut self) {
        self.stopped = None;
    }
}

fn continues(stopped: Position, queue: &Queue, memory: &GuestMemoryMmap) -> bool {
    let now = Position::of(queue);
    if stopped.base != 0 {
        return now.base == stopped.base;
    }
    // Unused so far, or around a multiple of 65,536: the used ring of a new driver is zero.
    now == stopped && (0..queue.size()).any(|index| !is_unused(queue, memory, index))
}

fn is_unused(queue: &Queue, memory: &GuestMemoryMmap, index: u16) -> bool {
    let offset = 4 + 8 * u64::from(index);
    let words = [offset, offset + 4].map(|offset| {
        let address = queue.used_ring().checked_add(offset)?;
        memory
            .load::<u32>(GuestAddress(address), Ordering::Relaxed)
            .ok()
    });
    words.iter().all(|word| word.unwrap_or(0) == 0)
}
