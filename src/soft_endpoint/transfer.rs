// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! DMA that can be stopped: a piece at a time, through the IOMMU.

use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, Waker};
use std::thread::{self, Thread};

use crc32fast::Hasher;

use crate::host::soft::{Access, Port, ThreadWaker, Transfer};
use crate::soft_endpoint::function::{Enabled, Function};
use crate::spec::{EventFlags, Iova};

/// Bytes moved at once. Small enough to stay in the first cache between the two halves of a copy, and to be stopped soon.
const PIECE: usize = 16 << 10;

/// Tells a thread that moves bytes to stop.
#[derive(Default)]
pub(super) struct Stop {
    asked: AtomicBool,
    thread: OnceLock<Thread>,
}

impl Stop {
    /// The thread that is woken when it waits for the guest.
    pub(super) fn set_thread(&self, thread: Thread) {
        let _ = self.thread.set(thread);
    }

    /// Asks it to stop; it does after the piece that it is at.
    pub(super) fn ask(&self) {
        self.asked.store(true, Ordering::SeqCst);
        if let Some(thread) = self.thread.get() {
            thread.unpark();
        }
    }

    /// Whether it was asked to.
    pub(super) fn is_asked(&self) -> bool {
        self.asked.load(Ordering::SeqCst)
    }

    /// Something new is begun.
    pub(super) fn clear(&self) {
        self.asked.store(false, Ordering::SeqCst);
    }
}

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

/// Moves bytes for a function, on its thread. Every operation also says how many bytes it moved.
pub(super) struct Mover<'a> {
    function: &'a Arc<Function>,
    port: &'a Port,
    stop: &'a Stop,
    waker: Waker,
    buffer: Vec<u8>,
    /// State of the generator of what is written.
    random: u64,
}

impl<'a> Mover<'a> {
    /// For the thread that calls this.
    pub(super) fn new(function: &'a Arc<Function>, port: &'a Port, stop: &'a Stop) -> Self {
        Self {
            function,
            port,
            stop,
            waker: Waker::from(Arc::new(ThreadWaker::new(thread::current()))),
            buffer: vec![0; PIECE],
            random: 0x9e37_79b9_7f4a_7c15 ^ u64::from(function.endpoint().0),
        }
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

    /// Writes bytes that nobody can guess by accident: their checksum.
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
        let enabled = self.function.enabled().contains(Enabled::BUS_MASTER);
        let (Some(from), Some(to)) = (from.checked_add(offset), to.checked_add(offset)) else {
            return 0;
        };
        if !enabled || self.stop.is_asked() {
            return 0;
        }
        let length = usize::try_from(left).unwrap_or(usize::MAX);
        let access = |kinds| Access {
            pasid: None,
            kinds,
            translated: false,
        };
        let source = (access(EventFlags::READ), Iova(from));
        let target = (access(EventFlags::WRITE), Iova(to));
        self.port.copy(source, target, length) as u64
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
        transfer: Transfer<'_>,
        failure: Failure,
    ) -> Result<(), Failure> {
        let address = base.checked_add(offset).ok_or(failure)?;
        if !self.function.enabled().contains(Enabled::BUS_MASTER) {
            return Err(failure);
        }
        let mut access = pin!(self.port.access(None, Iova(address), transfer));
        let mut context = Context::from_waker(&self.waker);
        loop {
            if self.stop.is_asked() {
                return Err(Failure::Stopped);
            }
            match access.as_mut().poll(&mut context) {
                Poll::Ready(result) => return result.map_err(|_| failure),
                Poll::Pending => thread::park(),
            }
        }
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

/// CRC-32 as the driver computes it: with Linux's `crc32_le(~0, ...)`, which does not invert at the end.
fn checksum(hasher: Hasher) -> u32 {
    !hasher.finalize()
}
