// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A split virtqueue in guest memory (virtio specification, § Split Virtqueues), while it is being served.
//!
//! `virtio_queue::Queue` keeps the state of a queue from one service to the next, and checks addresses and sizes as
//! they come in. A [`Ring`] takes over for the time of one service: it finds the three parts of the ring in memory
//! once instead of at every access.

use std::sync::atomic::{Ordering, fence};

use virtio_bindings::bindings::virtio_ring::{VRING_AVAIL_F_NO_INTERRUPT, VRING_USED_F_NO_NOTIFY};
use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestMemoryMmap, VolatileMemory, VolatileSlice};

use crate::transport::guest::GuestView;

/// Why a queue cannot be served. It stops until the front-end starts it again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum RingError {
    /// A part of the ring is not in guest memory, or is misaligned there.
    #[error("the ring is not in guest memory")]
    Outside,
    /// The driver claims to have made more buffers available than the ring has entries.
    #[error("the available index is ahead by more than the ring's size")]
    AvailableIndex,
}

/// Bytes of a descriptor.
pub(crate) const DESCRIPTOR_LEN: usize = 16;
/// Where the entries of both rings begin, behind `flags` and `idx`.
const ENTRIES: usize = 4;
const INDEX: usize = 2;

/// A virtqueue, for as long as guest memory stays as it is.
pub(crate) struct Ring<'m> {
    pub view: GuestView<'m>,
    pub descriptors: VolatileSlice<'m>,
    available: VolatileSlice<'m>,
    used: VolatileSlice<'m>,
    size: u16,
    event_idx: bool,
    next_available: u16,
    next_used: u16,
    /// `next_used` as the driver sees it.
    published: u16,
    /// `next_used` when the driver was last notified, or found not to want it.
    signalled: u16,
}

/// What a ring has come to.
pub(crate) struct Saved {
    next_available: u16,
    next_used: u16,
}

impl Saved {
    pub fn restore(&self, queue: &mut Queue) {
        queue.set_next_avail(self.next_available);
        queue.set_next_used(self.next_used);
    }
}

impl<'m> Ring<'m> {
    pub fn new(memory: &'m GuestMemoryMmap, queue: &Queue) -> Result<Self, RingError> {
        let mut view = GuestView::new(memory);
        let size = queue.size();
        let entries = usize::from(size);
        let event_idx = queue.event_idx_enabled();
        // With EVENT_IDX each ring has a field more behind its entries.
        let event = if event_idx { 2 } else { 0 };
        let mut part = |address, length| view.slice(address, length).ok_or(RingError::Outside);
        let ring = Self {
            descriptors: part(queue.desc_table(), entries * DESCRIPTOR_LEN)?,
            available: part(queue.avail_ring(), ENTRIES + entries * 2 + event)?,
            used: part(queue.used_ring(), ENTRIES + entries * 8 + event)?,
            view,
            size,
            event_idx,
            next_available: queue.next_avail(),
            next_used: queue.next_used(),
            published: queue.next_used(),
            signalled: queue.next_used(),
        };
        // From here on these accesses cannot fail.
        ring.available
            .load::<u16>(INDEX, Ordering::Relaxed)
            .and_then(|_| ring.used.load::<u16>(INDEX, Ordering::Relaxed))
            .map_err(|_| RingError::Outside)?;
        Ok(ring)
    }

    /// The state, for its keeper.
    pub fn saved(&self) -> Saved {
        Saved {
            next_available: self.next_available,
            next_used: self.next_used,
        }
    }

    pub fn size(&self) -> u16 {
        self.size
    }

    #[inline]
    fn load_available(&self, offset: usize, order: Ordering) -> u16 {
        u16::from_le(self.available.load(offset, order).unwrap_or(0))
    }

    #[inline]
    fn store_used(&self, offset: usize, value: u16, order: Ordering) {
        // Inside the ring, as `new` has found out.
        let _ = self.used.store(value.to_le(), offset, order);
    }

    /// How many buffers are available.
    #[inline]
    pub fn pending(&self) -> Result<u16, RingError> {
        // Pairs with the driver's barrier between the entry and the index.
        let pending = self
            .load_available(INDEX, Ordering::Acquire)
            .wrapping_sub(self.next_available);
        if pending > self.size {
            return Err(RingError::AvailableIndex);
        }
        Ok(pending)
    }

    /// The head of the buffer `ahead` places behind the next one.
    #[inline]
    pub fn head(&self, ahead: u16) -> u16 {
        let index = self.next_available.wrapping_add(ahead) & (self.size - 1);
        self.load_available(ENTRIES + usize::from(index) * 2, Ordering::Relaxed)
    }

    /// Takes the next buffer: it is the device's until [`Ring::give_back`].
    #[inline]
    pub fn take(&mut self) {
        self.next_available = self.next_available.wrapping_add(1);
    }

    /// Returns a buffer. The driver sees it with the next [`Ring::publish`].
    #[inline]
    pub fn give_back(&mut self, head: u16, written: u32) {
        let index = usize::from(self.next_used & (self.size - 1));
        let element = u64::from(head) | u64::from(written) << 32;
        if let Ok(slot) = self.used.get_ref::<u64>(ENTRIES + index * 8) {
            slot.store(element.to_le());
        }
        self.next_used = self.next_used.wrapping_add(1);
    }

    /// Number of buffers returned and not published yet.
    #[inline]
    pub fn unpublished(&self) -> u16 {
        self.next_used.wrapping_sub(self.published)
    }

    /// Shows the driver what was returned.
    #[inline]
    pub fn publish(&mut self) {
        if self.published != self.next_used {
            // Elements and buffers first.
            self.store_used(INDEX, self.next_used, Ordering::Release);
            self.published = self.next_used;
        }
    }

    /// Whether the driver wants an interrupt for what was published since the last call.
    pub fn wants_interrupt(&mut self) -> bool {
        let (old, new) = (self.signalled, self.published);
        if old == new {
            return false;
        }
        self.signalled = new;
        // The driver sets its wish, then looks at the index; so the index first, then the wish.
        fence(Ordering::SeqCst);
        if self.event_idx {
            let used_event =
                self.load_available(ENTRIES + usize::from(self.size) * 2, Ordering::Relaxed);
            crossed(used_event, new, old)
        } else {
            let flags = self.load_available(0, Ordering::Relaxed);
            u32::from(flags) & VRING_AVAIL_F_NO_INTERRUPT == 0
        }
    }

    /// Asks the driver not to kick. With EVENT_IDX there is nothing to do: it kicks once when it passes the index
    /// of the last [`Ring::enable_kicks`], and that has happened or is harmless.
    pub fn disable_kicks(&mut self) {
        if !self.event_idx {
            self.store_used(0, VRING_USED_F_NO_NOTIFY as u16, Ordering::Relaxed);
        }
    }

    /// Asks the driver to kick for buffers beyond those available now. True when some came in while asking, more
    /// than `seen`, for which there may be no kick.
    ///
    /// Unlike in virtio-queue, what is available already may stay there: the event queue holds buffers that the
    /// device does not need yet, and its next kick is for the one behind them.
    pub fn enable_kicks(&mut self, seen: u16) -> Result<bool, RingError> {
        if self.event_idx {
            let index = self.next_available.wrapping_add(seen);
            let offset = ENTRIES + usize::from(self.size) * 8;
            self.store_used(offset, index, Ordering::Relaxed);
        } else {
            self.store_used(0, 0, Ordering::Relaxed);
        }
        fence(Ordering::SeqCst);
        Ok(self.pending()? != seen)
    }
}

/// `vring_need_event` of the specification: whether an index moving from `old` to `new` passes `event`.
fn crossed(event: u16, new: u16, old: u16) -> bool {
    new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
}

#[cfg(test)]
mod tests {
    use super::crossed;

    #[test]
    fn an_index_passes_an_event_once() {
        assert!(crossed(0, 1, 0));
        assert!(!crossed(1, 1, 0));
        assert!(!crossed(0, 2, 1));
        assert!(crossed(u16::MAX, 0, u16::MAX));
        assert!(crossed(3, 8, 1));
        assert!(!crossed(8, 8, 1));
    }
}
