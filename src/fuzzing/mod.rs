// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What the fuzz targets of `fuzz/` run. The unit tests run it too, on the seeds in `fuzz/seeds/`.
//!
//! `ring`: any bytes in any ring. `function`: any access to a PCI function in software. `tables`: any page table that a
//! guest owns.

pub mod function;
pub mod ring;
pub mod tables;

/// What is left of an input. Each method takes a piece; `None` if the input is too short.
pub(crate) struct Input<'a>(pub &'a [u8]);

impl<'a> Input<'a> {
    pub(crate) fn bytes(&mut self, count: usize) -> Option<&'a [u8]> {
        let (bytes, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(bytes)
    }

    pub(crate) fn u8(&mut self) -> Option<u8> {
        self.bytes(1).and_then(|bytes| bytes.first().copied())
    }

    pub(crate) fn u16(&mut self) -> Option<u16> {
        Some(u16::from_le_bytes([self.u8()?, self.u8()?]))
    }

    pub(crate) fn u64(&mut self) -> Option<u64> {
        let bytes = self.bytes(8)?.try_into().ok()?;
        Some(u64::from_le_bytes(bytes))
    }
}
