// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Reset or pause? A front-end stops and starts the queues for both, and its messages do not say which. The request queue
//! does: a driver that goes on restarts it at the index where it stopped, and a new driver restarts it at 0. What QMP knows
//! of a reset comes first: [`DriverLife`].

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use crate::device::Device;
use crate::transport::driver_life::{DriverLife, NextDriver};

/// What is known of the request queue's starts and stops on a connection.
#[derive(Clone)]
pub(super) struct Lifecycle {
    driver_life: Arc<DriverLife>,
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
    pub fn new(driver_life: Arc<DriverLife>) -> Self {
        Self {
            driver_life,
            starts: 0,
            stopped: None,
        }
    }

    /// Called whenever the queue runs. At the first call for a start, resumes or resets the device, and returns true.
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
        let stopped = self.stopped.take();
        match self.driver_life.driver_started() {
            NextDriver::AfterReset => {}
            NextDriver::AfterEnd => device.reset(),
            NextDriver::Undecided => match stopped {
                Some(stopped) if continues(stopped, queue, memory) => device.resume(Instant::now()),
                Some(_) => device.reset(),
                // The first start of a connection finds the device as new.
                None => {}
            },
        }
        true
    }

    /// The queue has stopped. Its worker may not have looked at its start yet.
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
            device.suspend(Instant::now());
            self.driver_life.queues_stopped();
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
