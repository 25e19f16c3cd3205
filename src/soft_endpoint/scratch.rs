// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! BAR 1: memory, so that a driver has a BAR to write over.
//!
//! For tests of BARs whose parts a function maps to different places, the two halves can be replaced by others, in the
//! wrong order on purpose: a write that goes past its half shows.

use std::ops::Range;

use parking_lot::{Mutex, MutexGuard};
use serde_json::{Value, json};

use crate::soft_endpoint::function::RegisterBlock;

/// Parts that subranges divide the BAR into.
const SUBRANGES: usize = 2;

/// Memory behind a BAR.
pub(super) struct Scratch {
    index: usize,
    length: usize,
    inner: Mutex<Inner>,
}

struct Inner {
    memory: Vec<u8>,
    /// What is mapped instead of it: the last subrange first.
    subranges: Option<Vec<u8>>,
}

impl Scratch {
    /// Memory of `length` bytes behind BAR `index`.
    pub(super) fn new(index: usize, length: usize) -> Self {
        Self {
            index,
            length,
            inner: Mutex::new(Inner {
                memory: vec![0; length],
                subranges: None,
            }),
        }
    }

    /// The number of the BAR.
    pub(super) fn index(&self) -> usize {
        self.index
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock()
    }

    /// Maps subranges, each full of its signature.
    pub(super) fn map_subranges(&self) {
        let half = self.length / SUBRANGES;
        let memory = (0..SUBRANGES)
            .rev()
            .flat_map(|i| std::iter::repeat_n((0x50 + self.index * 8 + i) as u8, half))
            .collect();
        self.lock().subranges = Some(memory);
    }

    /// Maps the memory again that was there before; whether there were subranges.
    pub(super) fn unmap_subranges(&self) -> bool {
        self.lock().subranges.take().is_some()
    }

    /// The memory that a byte of the BAR is mapped to, and where in it.
    fn place(&self, inner: &Inner, offset: u64) -> usize {
        let offset = usize::try_from(offset).unwrap_or(usize::MAX);
        let half = self.length / SUBRANGES;
        match inner.subranges {
            Some(_) if offset < half => offset + half,
            Some(_) => offset.saturating_sub(half),
            None => offset,
        }
    }
}

/// The addresses of an access, byte by byte.
fn bytes(offset: u64, length: usize) -> Range<u64> {
    offset..offset.saturating_add(length as u64)
}

impl RegisterBlock for Scratch {
    fn read(&self, offset: u64, data: &mut [u8]) {
        let inner = self.lock();
        for (at, byte) in bytes(offset, data.len()).zip(data) {
            let memory = inner.subranges.as_ref().unwrap_or(&inner.memory);
            *byte = memory.get(self.place(&inner, at)).copied().unwrap_or(0);
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        let mut inner = self.lock();
        for (at, &value) in bytes(offset, data.len()).zip(data) {
            let place = self.place(&inner, at);
            let Inner { memory, subranges } = &mut *inner;
            if let Some(byte) = subranges.as_mut().unwrap_or(memory).get_mut(place) {
                *byte = value;
            }
        }
    }

    fn reset(&self) {
        let mut inner = self.lock();
        inner.memory.fill(0);
        inner.subranges = None;
    }

    fn describe(&self) -> Value {
        json!({"subranges": self.lock().subranges.is_some()})
    }
}
