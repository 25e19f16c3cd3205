// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Descriptor chains (virtio specification, § The Virtqueue Descriptor Table, § Indirect Descriptors).
//!
//! A request may be split over descriptors in any way, directly or through an indirect table. The guest can change
//! a chain while it is read: every descriptor is read once per walk and checked then.

use virtio_queue::desc::split::Descriptor;
use vm_memory::VolatileMemory;

use crate::device::MAX_READABLE;
use crate::spec::TAIL_LEN;
use crate::transport::MAX_QUEUE_SIZE;
use crate::transport::guest::GuestView;
use crate::transport::ring::{DESCRIPTOR_LEN, Ring};

/// A chain of which nothing can be trusted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Broken {
    /// It has a loop, or a descriptor that is out of place or has a length that none may have.
    Chain,
    /// What is at this guest-physical address is not, or not all, in memory that the front-end shares.
    Outside(u64),
}

/// What one descriptor describes: a piece of guest memory; not empty.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Segment {
    pub address: u64,
    pub length: u32,
    pub writable: bool,
}

/// A request's buffer.
pub(crate) struct Chain {
    readable: [u8; MAX_READABLE],
    /// Length of the device-readable part; the first bytes of it are in `readable`.
    pub readable_len: usize,
    /// Length of the device-writable part.
    pub writable_len: u32,
    pub tail: TailPlace,
}

/// Where the last bytes of a device-writable part are.
#[derive(Clone, Copy, Debug)]
pub(crate) struct TailPlace {
    bytes: [u64; TAIL_LEN],
    contiguous: bool,
}

impl<'m> Ring<'m> {
    /// Reads the chain of a request.
    #[inline]
    pub fn chain(&mut self, head: u16) -> Result<Chain, Broken> {
        let mut chain = Chain {
            readable: [0; MAX_READABLE],
            readable_len: 0,
            writable_len: 0,
            tail: TailPlace {
                bytes: [0; TAIL_LEN],
                contiguous: true,
            },
        };
        self.walk(head, |view, segment| {
            if segment.writable {
                if !view.contains(segment.address, segment.length as usize) {
                    return Err(Broken::Outside(segment.address));
                }
                // § The Virtqueue Descriptor Table: a chain has at most 2^32 bytes.
                chain.writable_len = chain
                    .writable_len
                    .checked_add(segment.length)
                    .ok_or(Broken::Chain)?;
                chain.tail.extend(segment);
                Ok(())
            } else {
                chain.read(view, segment)
            }
        })?;
        Ok(chain)
    }

    /// The length of a chain's device-writable part.
    pub fn writable_len(&mut self, head: u16) -> Result<usize, Broken> {
        let mut length = 0;
        self.walk(head, |view, segment| {
            if segment.writable {
                if !view.contains(segment.address, segment.length as usize) {
                    return Err(Broken::Outside(segment.address));
                }
                length += segment.length as usize;
            }
            Ok(())
        })?;
        Ok(length)
    }

    /// Writes `bytes` and then zeros to the device-writable part, `total` bytes in all or as many as there are.
    pub fn fill(&mut self, head: u16, mut bytes: &[u8], total: usize) -> Result<(), Broken> {
        const ZEROS: [u8; 256] = [0; 256];
        let mut left = total;
        self.walk(head, |view, segment| {
            if !segment.writable {
                return Ok(());
            }
            let mut address = segment.address;
            let mut room = left.min(segment.length as usize);
            left -= room;
            while room > 0 {
                let source = if bytes.is_empty() { &ZEROS[..] } else { bytes };
                let piece = source.get(..room).unwrap_or(source);
                if !view.write(address, piece) {
                    return Err(Broken::Outside(address));
                }
                bytes = bytes.get(piece.len()..).unwrap_or_default();
                address += piece.len() as u64;
                room -= piece.len();
            }
            Ok(())
        })
    }

    /// Calls `visit` with every non-empty segment of a chain. Device-readable ones come first, or it is broken.
    #[inline]
    fn walk(
        &mut self,
        head: u16,
        mut visit: impl FnMut(&mut GuestView<'m>, Segment) -> Result<(), Broken>,
    ) -> Result<(), Broken> {
        // The address of the indirect table, once the chain has gone there.
        let mut table: Option<u64> = None;
        let mut entries = u32::from(self.size());
        // A chain is not longer than the queue; an indirect one not longer than any queue can be.
        let mut left = entries;
        let mut index = u32::from(head);
        let mut writable = false;
        loop {
            if index >= entries || left == 0 {
                return Err(Broken::Chain);
            }
            left -= 1;
            let descriptor = match table {
                None => self.direct(index)?,
                Some(table) => indirect(&mut self.view, table, index)?,
            };
            if descriptor.refers_to_indirect_table() {
                let length = descriptor.len();
                let whole = length != 0 && (length as usize).is_multiple_of(DESCRIPTOR_LEN);
                // Indirect tables end a chain, and do not nest.
                if table.is_some() || descriptor.has_next() || !whole {
                    return Err(Broken::Chain);
                }
                table = Some(descriptor.addr().0);
                entries = length / DESCRIPTOR_LEN as u32;
                left = entries.min(MAX_QUEUE_SIZE as u32);
                index = 0;
                continue;
            }
            if writable && !descriptor.is_write_only() {
                return Err(Broken::Chain);
            }
            writable = descriptor.is_write_only();
            if descriptor.len() != 0 {
                visit(
                    &mut self.view,
                    Segment {
                        address: descriptor.addr().0,
                        length: descriptor.len(),
                        writable,
                    },
                )?;
            }
            if !descriptor.has_next() {
                return Ok(());
            }
            index = u32::from(descriptor.next());
        }
    }

    #[inline]
    fn direct(&self, index: u32) -> Result<Descriptor, Broken> {
        self.descriptors
            .get_ref::<Descriptor>(index as usize * DESCRIPTOR_LEN)
            .map(|descriptor| descriptor.load())
            .map_err(|_| Broken::Chain)
    }
}

#[inline]
fn indirect(view: &mut GuestView<'_>, table: u64, index: u32) -> Result<Descriptor, Broken> {
    let address = table
        .checked_add(u64::from(index) * DESCRIPTOR_LEN as u64)
        .ok_or(Broken::Chain)?;
    if let Some(slice) = view.slice(address, DESCRIPTOR_LEN) {
        return slice
            .get_ref::<Descriptor>(0)
            .map(|descriptor| descriptor.load())
            .map_err(|_| Broken::Chain);
    }
    // Across two regions.
    let mut bytes = [0; DESCRIPTOR_LEN];
    if !view.read(address, &mut bytes) {
        return Err(Broken::Outside(address));
    }
    let mut descriptor = Descriptor::default();
    vm_memory::ByteValued::as_mut_slice(&mut descriptor).copy_from_slice(&bytes);
    Ok(descriptor)
}

impl Chain {
    /// The device-readable part, or as much of it as the device looks at.
    pub fn readable(&self) -> &[u8] {
        self.readable
            .get(..self.readable_len)
            .unwrap_or(&self.readable)
    }

    #[inline]
    fn read(&mut self, view: &mut GuestView<'_>, segment: Segment) -> Result<(), Broken> {
        let length = segment.length as usize;
        let room = self
            .readable
            .get_mut(self.readable_len..)
            .unwrap_or_default();
        let read = if length <= room.len() {
            room.get_mut(..length)
                .is_some_and(|room| view.read(segment.address, room))
        } else {
            // Too long for a request, and refused for that; its addresses are checked all the same.
            view.contains(segment.address, length) && view.read(segment.address, room)
        };
        self.readable_len += length;
        if read {
            Ok(())
        } else {
            Err(Broken::Outside(segment.address))
        }
    }
}

impl TailPlace {
    /// The part has grown by a segment.
    #[inline]
    fn extend(&mut self, segment: Segment) {
        let Some(skipped) = (segment.length as usize).checked_sub(TAIL_LEN) else {
            for offset in 0..u64::from(segment.length) {
                self.bytes.rotate_left(1);
                self.bytes[TAIL_LEN - 1] = segment.address + offset;
            }
            self.contiguous = false;
            return;
        };
        self.bytes[0] = segment.address + skipped as u64;
        self.contiguous = true;
        for offset in 1..TAIL_LEN {
            self.bytes[offset] = self.bytes[0] + offset as u64;
        }
    }

    /// Writes the tail. The part has room for it.
    #[inline]
    pub fn write(&self, view: &mut GuestView<'_>, tail: [u8; TAIL_LEN]) {
        if self.contiguous {
            view.write(self.bytes[0], &tail);
        } else {
            for (address, byte) in self.bytes.iter().zip(tail) {
                view.write(*address, &[byte]);
            }
        }
    }
}
