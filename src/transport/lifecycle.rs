// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Reset or pause? A front-end stops and starts the queues for both and says nothing else, so it is read off the
//! request queue: a driver that goes on does so where the queue stopped, and a new one begins at 0. Somebody who knows
//! of a reset before may say so: [`Resets`].

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use vmm_sys_util::eventfd::EventFd;

use crate::device::Device;

/// Resets, as somebody else than the front-end's messages tells them.
///
/// Whoever tells them has a connection of its own, so what it says can be late. Between the stop of the queues and the
/// features of the next driver it is not.
#[derive(Debug, Default)]
pub struct Resets(Mutex<Known>);

#[derive(Debug, Default)]
struct Known {
    since: Since,
    /// How often the queues have stopped.
    stops: u64,
    /// Written when they do.
    told: Option<EventFd>,
}

/// A stop of the queues of which nobody knows yet whether it was a reset or a pause.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stop(u64);

/// What happened last.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Since {
    /// There has been no driver.
    #[default]
    Nobody,
    /// The queues of a driver stopped.
    Stopped(Found),
    /// A driver is on its way, or there.
    Driver(Found),
}

/// What the next driver finds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Found {
    /// What was there at the stop, if it is the same driver after a pause.
    Perhaps,
    /// A driver that has ended: the device is to be reset.
    Ended,
    /// A device that was reset.
    Reset,
}

impl Resets {
    // Held while the device is reset, so that a driver's start waits for that.
    fn known(&self) -> MutexGuard<'_, Known> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From now on `event`, which does not block, is written when the queues have stopped. There is one such.
    pub fn tell(&self, event: EventFd) {
        self.known().told = Some(event);
    }

    /// The stop that has to be told from a pause, if there is one.
    pub fn open_stop(&self) -> Option<Stop> {
        let known = self.known();
        (known.since == Since::Stopped(Found::Perhaps)).then_some(Stop(known.stops))
    }

    /// The machine runs, and has after the stop, with the front-end's messages of before all carried out: so it was no
    /// pause. Ends the driver, unless one is on its way again; the device is reset for the next. Whether it did.
    pub fn machine_runs(&self, stop: Stop, device: &Device) -> bool {
        let mut known = self.known();
        if known.since != Since::Stopped(Found::Perhaps) || known.stops != stop.0 {
            return false;
        }
        device.end_driver();
        known.since = Since::Stopped(Found::Ended);
        true
    }

    /// The machine was reset: resets the device, unless a driver is on its way again. Whether it did.
    pub fn machine_was_reset(&self, device: &Device) -> bool {
        let mut known = self.known();
        if matches!(known.since, Since::Driver(_)) {
            return false;
        }
        device.system_reset();
        known.since = Since::Stopped(Found::Reset);
        true
    }

    /// The front-end has passed on the features of a driver. That takes no lock of the workers.
    pub(crate) fn driver_comes(&self) {
        let mut known = self.known();
        known.since = match known.since {
            Since::Nobody => Since::Driver(Found::Perhaps),
            Since::Stopped(found) | Since::Driver(found) => Since::Driver(found),
        };
    }

    /// The driver is there: what it finds.
    fn driver_is_there(&self) -> Found {
        let there = Since::Driver(Found::Perhaps);
        match std::mem::replace(&mut self.known().since, there) {
            Since::Nobody => Found::Perhaps,
            Since::Stopped(found) | Since::Driver(found) => found,
        }
    }

    /// The queues stopped: perhaps the driver is gone.
    pub(crate) fn queues_stopped(&self) {
        let mut known = self.known();
        known.since = Since::Stopped(Found::Perhaps);
        known.stops += 1;
        // Full means that it is readable.
        let _ = known.told.as_ref().map(|told| told.write(1));
    }

    /// The front-end is gone, and the driver with it.
    pub(super) fn front_end_is_gone(&self) {
        self.known().since = Since::Nobody;
    }
}

/// What is known of the request queue's starts and stops on a connection.
pub(super) struct Lifecycle {
    resets: Arc<Resets>,
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
    pub fn new(resets: Arc<Resets>) -> Self {
        Self {
            resets,
            starts: 0,
            stopped: None,
        }
    }

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
        let stopped = self.stopped.take();
        match self.resets.driver_is_there() {
            Found::Reset => {}
            Found::Ended => device.reset(),
            Found::Perhaps => match stopped {
                Some(stopped) if continues(stopped, queue, memory) => device.resume(),
                Some(_) => device.reset(),
                // The first start of a connection finds the device as new.
                None => {}
            },
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
            self.resets.queues_stopped();
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
