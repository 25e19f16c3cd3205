// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The driver's side of a split virtqueue.

use std::sync::atomic::{Ordering, fence};

use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::ram::Ram;
use super::{PATIENCE, wait_until};

pub const F_NEXT: u16 = 1;
pub const F_WRITE: u16 = 2;
pub const F_INDIRECT: u16 = 4;

/// Entries of an indirect table.
const TABLE_ENTRIES: u64 = 64;

/// How a buffer's descriptors are laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// In the queue's table.
    Direct,
    /// In a table of their own.
    Indirect,
}

/// A piece of a buffer.
#[derive(Clone, Copy, Debug)]
pub struct Segment {
    pub address: u64,
    pub length: u32,
    pub writable: bool,
}

impl Segment {
    pub fn readable(address: u64, length: usize) -> Self {
        Self {
            address,
            length: length as u32,
            writable: false,
        }
    }

    pub fn writable(address: u64, length: usize) -> Self {
        Self {
            address,
            length: length as u32,
            writable: true,
        }
    }
}

/// A virtqueue. Its fields are open: tests also drive it in ways that no driver would.
pub struct VirtQueue {
    map: GuestMemoryMmap,
    pub size: u16,
    pub descriptors: u64,
    pub available: u64,
    pub used: u64,
    tables: u64,
    pub event_idx: bool,
    /// The driver's available index: published with [`VirtQueue::publish`].
    pub available_index: u16,
    /// What [`VirtQueue::publish`] published last.
    published: u16,
    /// How far the used ring was read.
    pub used_seen: u16,
    free: Vec<u16>,
    pub kick: EventFd,
    pub call: EventFd,
}

impl VirtQueue {
    pub fn new(ram: &mut Ram, size: u16, event_idx: bool) -> Self {
        let n = u64::from(size);
        let event = || EventFd::new(EFD_NONBLOCK).expect("an eventfd");
        let mut queue = Self {
            descriptors: ram.allocate(16 * n),
            available: ram.allocate(6 + 2 * n),
            used: ram.allocate(6 + 8 * n),
            tables: ram.allocate(16 * TABLE_ENTRIES * n),
            map: ram.map.clone(),
            size,
            event_idx,
            available_index: 0,
            published: 0,
            used_seen: 0,
            free: Vec::new(),
            kick: event(),
            call: event(),
        };
        queue.reset();
        queue
    }

    /// What a new driver does: empty rings from index 0.
    pub fn reset(&mut self) {
        let n = usize::from(self.size);
        self.put(self.descriptors, &vec![0; 16 * n]);
        self.put(self.available, &vec![0; 6 + 2 * n]);
        self.put(self.used, &vec![0; 6 + 8 * n]);
        self.available_index = 0;
        self.published = 0;
        self.used_seen = 0;
        self.free = (0..self.size).rev().collect();
    }

    fn put(&self, address: u64, bytes: &[u8]) {
        self.map
            .write_slice(bytes, GuestAddress(address))
            .expect("memory");
    }

    fn load16(&self, address: u64) -> u16 {
        self.map
            .load(GuestAddress(address), Ordering::Acquire)
            .expect("memory")
    }

    fn store16(&self, address: u64, value: u16) {
        self.map
            .store(value, GuestAddress(address), Ordering::Release)
            .expect("memory");
    }

    /// Writes a descriptor, into the queue's table or any other.
    pub fn write_descriptor(
        &self,
        table: u64,
        index: u16,
        segment: Segment,
        flags: u16,
        next: u16,
    ) {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&segment.address.to_le_bytes());
        bytes[8..12].copy_from_slice(&segment.length.to_le_bytes());
        let write = if segment.writable { F_WRITE } else { 0 };
        bytes[12..14].copy_from_slice(&(flags | write).to_le_bytes());
        bytes[14..].copy_from_slice(&next.to_le_bytes());
        self.put(table + 16 * u64::from(index), &bytes);
    }

    /// Takes a free descriptor.
    pub fn take_descriptor(&mut self) -> u16 {
        self.free.pop().expect("a free descriptor")
    }

    /// Gives a descriptor back that is not in a chain that the queue made.
    pub fn free_descriptor(&mut self, index: u16) {
        self.free.push(index);
    }

    /// Makes a chain and its head available; the device sees it after [`VirtQueue::publish`].
    pub fn push(&mut self, segments: &[Segment], layout: Layout) -> u16 {
        let head = match layout {
            Layout::Direct => {
                let indices: Vec<u16> = segments.iter().map(|_| self.take_descriptor()).collect();
                for (position, segment) in segments.iter().enumerate() {
                    let next = indices.get(position + 1).copied();
                    let flags = if next.is_some() { F_NEXT } else { 0 };
                    self.write_descriptor(
                        self.descriptors,
                        indices[position],
                        *segment,
                        flags,
                        next.unwrap_or(0),
                    );
                }
                indices[0]
            }
            Layout::Indirect => {
                assert!(segments.len() as u64 <= TABLE_ENTRIES);
                let head = self.take_descriptor();
                let table = self.tables + 16 * TABLE_ENTRIES * u64::from(head);
                for (position, segment) in segments.iter().enumerate() {
                    let last = position + 1 == segments.len();
                    let flags = if last { 0 } else { F_NEXT };
                    self.write_descriptor(
                        table,
                        position as u16,
                        *segment,
                        flags,
                        position as u16 + 1,
                    );
                }
                let whole = Segment::readable(table, 16 * segments.len());
                self.write_descriptor(self.descriptors, head, whole, F_INDIRECT, 0);
                head
            }
        };
        self.make_available(head);
        head
    }

    /// Puts a head into the available ring.
    pub fn make_available(&mut self, head: u16) {
        let slot = u64::from(self.available_index % self.size);
        self.store16(self.available + 4 + 2 * slot, head);
        self.available_index = self.available_index.wrapping_add(1);
    }

    /// Shows the device what was pushed.
    pub fn publish(&mut self) {
        self.store16(self.available + 2, self.available_index);
    }

    /// Whether the device wants a kick for what was published since the last call.
    pub fn wants_kick(&mut self) -> bool {
        fence(Ordering::SeqCst);
        let (old, new) = (self.published, self.available_index);
        self.published = new;
        if self.event_idx {
            let event = self.load16(self.used + 4 + 8 * u64::from(self.size));
            new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
        } else {
            self.load16(self.used) & 1 == 0
        }
    }

    /// Publishes, and kicks if the device wants it. Says whether it did.
    pub fn submit(&mut self) -> bool {
        self.publish();
        let wanted = self.wants_kick();
        if wanted {
            self.kick.write(1).expect("a kick");
        }
        wanted
    }

    /// The device's used index.
    pub fn used_index(&self) -> u16 {
        self.load16(self.used + 2)
    }

    /// The next buffer that the device has returned: its head, and how much was written.
    pub fn poll(&mut self) -> Option<(u16, u32)> {
        if self.used_index() == self.used_seen {
            return None;
        }
        let slot = u64::from(self.used_seen % self.size);
        let element: [u8; 8] = self
            .map
            .read_obj(GuestAddress(self.used + 4 + 8 * slot))
            .expect("memory");
        self.used_seen = self.used_seen.wrapping_add(1);
        let head = u32::from_le_bytes(element[..4].try_into().expect("four bytes")) as u16;
        let written = u32::from_le_bytes(element[4..].try_into().expect("four bytes"));
        Some((head, written))
    }

    /// Waits for the next buffer.
    pub fn wait(&mut self) -> (u16, u32) {
        let mut result = None;
        wait_until("a buffer on the used ring", || {
            result = self.poll();
            result.is_some()
        });
        result.expect("a buffer")
    }

    /// Waits until the device has returned everything.
    pub fn wait_all(&mut self) -> Vec<(u16, u32)> {
        let mut all = Vec::new();
        while self.used_seen != self.available_index {
            all.push(self.wait());
        }
        all
    }

    /// Frees the descriptors of a chain that the device has returned.
    pub fn recycle(&mut self, head: u16) {
        let mut index = head;
        loop {
            self.free.push(index);
            let bytes: [u8; 16] = self
                .map
                .read_obj(GuestAddress(self.descriptors + 16 * u64::from(index)))
                .expect("memory");
            let flags = u16::from_le_bytes([bytes[12], bytes[13]]);
            if flags & F_NEXT == 0 || flags & F_INDIRECT != 0 {
                return;
            }
            index = u16::from_le_bytes([bytes[14], bytes[15]]);
        }
    }

    /// Asks for an interrupt with the next used buffer, or for none.
    pub fn want_interrupts(&mut self, wanted: bool) {
        if self.event_idx {
            let event = if wanted {
                self.used_seen
            } else {
                self.used_seen.wrapping_sub(1)
            };
            self.store16(self.available + 4 + 2 * u64::from(self.size), event);
        } else {
            self.store16(self.available, u16::from(!wanted));
        }
        fence(Ordering::SeqCst);
    }

    /// Whether an interrupt has come since the last call.
    pub fn interrupted(&self) -> bool {
        self.call.read().is_ok()
    }

    /// Waits for an interrupt.
    pub fn wait_interrupt(&self) {
        let _ = PATIENCE;
        wait_until("an interrupt", || self.interrupted());
    }
}
