// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The event queue, as the device sees it.

use crate::device::events::{Buffers, EventQueue};
use crate::transport::ring::{Ring, RingError};

/// The running event queue.
pub(crate) struct EventRing<'a, 'm> {
    ring: &'a mut Ring<'m>,
    /// What was found out about the ring: no buffer can be had from it any more.
    pub error: Option<RingError>,
    /// Buffers that went back to the driver.
    pub used: u16,
}

impl<'a, 'm> EventRing<'a, 'm> {
    pub fn new(ring: &'a mut Ring<'m>) -> Self {
        Self {
            ring,
            error: None,
            used: 0,
        }
    }

    /// Number of buffers available.
    pub fn pending(&mut self) -> u16 {
        match self.ring.pending() {
            Ok(pending) => pending,
            Err(error) => {
                self.error = Some(error);
                0
            }
        }
    }
}

impl EventQueue for EventRing<'_, '_> {
    fn size(&self) -> usize {
        usize::from(self.ring.size())
    }

    fn peek(&mut self, count: usize, min_len: usize) -> Buffers {
        let pending = self.pending();
        let looked_at = count.min(usize::from(pending));
        for index in 0..looked_at {
            let head = self.ring.head(index as u16);
            // A broken chain has no room for anything.
            let len = self.ring.writable_len(head).unwrap_or(0);
            if len < min_len {
                return Buffers::TooSmall { index, len };
            }
        }
        if looked_at < count {
            Buffers::TooFew
        } else {
            Buffers::Enough
        }
    }

    fn push(&mut self, event: &[u8]) {
        self.give_back(Some(event));
    }

    fn discard(&mut self) {
        self.give_back(None);
    }
}

impl EventRing<'_, '_> {
    fn give_back(&mut self, event: Option<&[u8]>) {
        if self.pending() == 0 {
            return;
        }
        let head = self.ring.head(0);
        self.ring.take();
        self.used += 1;
        let written = match event {
            Some(event) if self.ring.fill(head, event, event.len()).is_ok() => event.len() as u32,
            _ => 0,
        };
        self.ring.give_back(head, written);
        self.ring.publish();
    }
}
