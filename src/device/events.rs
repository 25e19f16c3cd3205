// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What waits for the event queue.

/// The event virtqueue, as the device needs it.
pub trait EventQueue {
    /// Number of entries of the ring: no group of more can ever be delivered.
    fn size(&self) -> usize;

    /// Looks at the first `count` available buffers, without taking them.
    fn peek(&mut self, count: usize, min_len: usize) -> Buffers;

    /// Takes the first available buffer and fills it with `event`. Called only after [`EventQueue::peek`] said
    /// that it is there and long enough. The driver is notified later, once for all.
    fn push(&mut self, event: &[u8]);

    /// Takes the first available buffer and returns it unused (used length 0): it is too small for anything.
    fn discard(&mut self);
}

/// What [`EventQueue::peek`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Buffers {
    /// All are there, and each is long enough.
    Enough,
    /// There are fewer, and each that is there is long enough.
    TooFew,
    /// The buffer `index` places behind the head has only `len` device-writable bytes.
    TooSmall {
        /// 0 for the head of the queue.
        index: usize,
        /// Its length.
        len: usize,
    },
}
