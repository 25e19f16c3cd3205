// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The transfers of the test registers: read, write and copy, a piece at a time.

use crc32fast::Hasher;

use crate::host::soft::{Access, Transfer};
use crate::soft_endpoint::agent::dma::{AccessMode, Dma, Refused};
use crate::spec::{EventFlags, Iova};

/// Bytes moved at once. Small enough to stay in the first cache between the two halves of a copy, and to be stopped soon.
const PIECE: usize = 16 << 10;

/// Why bytes were not moved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Failure {
    /// They cannot be read, or bus mastering is off.
    Source,
    /// They cannot be written, or bus mastering is off.
    Destination,
    /// The function was reset.
    Stopped,
}

/// Moves bytes on the agent's thread. Every operation also says how many bytes it moved.
pub(super) struct Mover<'a> {
    dma: Dma<'a>,
    buffer: Vec<u8>,
    /// State of the generator of what is written.
    random: u64,
}

impl<'a> Mover<'a> {
    /// For the thread that calls this. What it writes depends on `seed`.
    pub(super) fn new(dma: Dma<'a>, seed: u32) -> Self {
        Self {
            dma,
            buffer: vec![0; PIECE],
            random: 0x9e37_79b9_7f4a_7c15 ^ u64::from(seed),
        }
    }

    /// A command begins.
    pub(super) fn begin(&self) {
        self.dma.begin();
    }

    /// Reads: the checksum of the bytes.
    pub(super) fn read(&mut self, from: u64, size: u64) -> (Result<u32, Failure>, u64) {
        let mut hasher = Hasher::new();
        let result = self.each_piece(size, |mover, offset, buffer| {
            mover.access(from, offset, Transfer::Read(buffer), Failure::Source)?;
            hasher.update(buffer);
            Ok(())
        });
        (result.0.map(|()| checksum(hasher)), result.1)
    }

    /// Writes bytes from a generator, so that a wrong checksum is no coincidence: the checksum of the bytes.
    pub(super) fn write(&mut self, to: u64, size: u64) -> (Result<u32, Failure>, u64) {
        let mut hasher = Hasher::new();
        let result = self.each_piece(size, |mover, offset, buffer| {
            mover.fill(buffer);
            hasher.update(buffer);
            mover.access(to, offset, Transfer::Write(buffer), Failure::Destination)
        });
        (result.0.map(|()| checksum(hasher)), result.1)
    }

    /// Copies: directly as far as that goes, and where it does not a piece by accesses, which wait and fail as they must.
    pub(super) fn copy(&mut self, from: u64, to: u64, size: u64) -> (Result<(), Failure>, u64) {
        let mut done = 0;
        while done < size {
            let moved = self.copy_directly(from, to, done, size - done);
            if moved > 0 {
                done += moved;
                continue;
            }
            let piece = (size - done).min(PIECE as u64);
            let (result, moved) = self.each_piece(piece, |mover, offset, buffer| {
                let offset = done + offset;
                mover.access(from, offset, Transfer::Read(buffer), Failure::Source)?;
                mover.access(to, offset, Transfer::Write(buffer), Failure::Destination)
            });
            done += moved;
            if result.is_err() {
                return (result, done);
            }
        }
        (Ok(()), done)
    }

    /// How many bytes could be copied at once.
    fn copy_directly(&self, from: u64, to: u64, offset: u64, left: u64) -> u64 {
        let (Some(from), Some(to)) = (from.checked_add(offset), to.checked_add(offset)) else {
            return 0;
        };
        let source = (access_of(EventFlags::READ), Iova(from));
        let target = (access_of(EventFlags::WRITE), Iova(to));
        let length = usize::try_from(left).unwrap_or(usize::MAX);
        self.dma.copy(source, target, length) as u64
    }

    fn each_piece(
        &mut self,
        size: u64,
        mut piece: impl FnMut(&mut Self, u64, &mut [u8]) -> Result<(), Failure>,
    ) -> (Result<(), Failure>, u64) {
        // Taken out for the time being, so that the mover can be used with a part of it.
        let mut buffer = std::mem::take(&mut self.buffer);
        let mut done = 0;
        let mut result = Ok(());
        while done < size && result.is_ok() {
            let left = usize::try_from(size - done).unwrap_or(usize::MAX);
            let length = left.min(PIECE);
            result = piece(self, done, &mut buffer[..length]);
            if result.is_ok() {
                done += length as u64;
            }
        }
        self.buffer = buffer;
        (result, done)
    }

    /// One access, which may wait for the answer to a page request.
    fn access(
        &self,
        base: u64,
        offset: u64,
        mut transfer: Transfer<'_>,
        failure: Failure,
    ) -> Result<(), Failure> {
        let address = base.checked_add(offset).ok_or(failure)?;
        let mode = AccessMode {
            access: access_of(transfer.direction()),
            group: Some(1),
        };
        self.dma
            .transfer(&mut (), mode, Iova(address), &mut transfer, &[])
            .map_err(|(_, why)| match why {
                Refused::Stopped => Failure::Stopped,
                _ => failure,
            })
    }

    /// xorshift64.
    fn fill(&mut self, buffer: &mut [u8]) {
        for bytes in buffer.chunks_mut(8) {
            self.random ^= self.random << 13;
            self.random ^= self.random >> 7;
            self.random ^= self.random << 17;
            let length = bytes.len();
            bytes.copy_from_slice(&self.random.to_le_bytes()[..length]);
        }
    }
}

/// An access without a PASID; with ATS, if that is enabled.
fn access_of(kinds: EventFlags) -> Access {
    Access {
        pasid: None,
        kinds,
        translated: true,
    }
}

/// CRC-32 as the driver computes it: with Linux's `crc32_le(~0, ...)`, which does not invert at the end.
fn checksum(hasher: Hasher) -> u32 {
    !hasher.finalize()
}
