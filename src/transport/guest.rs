// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Guest memory as a virtqueue needs it: many small accesses, mostly to the same region.

use vm_memory::{
    Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion, VolatileSlice,
};

/// A view of guest memory that remembers the region it used last. A region lookup costs as much as the access
/// itself, and a request needs four.
#[derive(Clone)]
pub(crate) struct GuestView<'m> {
    memory: &'m GuestMemoryMmap,
    /// First address of `region`.
    start: u64,
    region: Option<VolatileSlice<'m>>,
}

impl<'m> GuestView<'m> {
    pub fn new(memory: &'m GuestMemoryMmap) -> Self {
        Self {
            memory,
            start: 0,
            region: None,
        }
    }

    /// The bytes, when they lie in one region.
    #[inline]
    pub fn slice(&mut self, address: u64, length: usize) -> Option<VolatileSlice<'m>> {
        if let Some(region) = &self.region
            && let Some(offset) = address.checked_sub(self.start)
            && let Ok(slice) = region.subslice(usize::try_from(offset).ok()?, length)
        {
            return Some(slice);
        }
        self.other_region(address, length)
    }

    #[cold]
    fn other_region(&mut self, address: u64, length: usize) -> Option<VolatileSlice<'m>> {
        let region = self.memory.find_region(GuestAddress(address))?;
        self.start = region.start_addr().0;
        let slice = region.as_volatile_slice().ok()?;
        self.region = Some(slice);
        let offset = usize::try_from(address.checked_sub(self.start)?).ok()?;
        slice.subslice(offset, length).ok()
    }

    /// Whether all of the bytes are memory, in one region or in adjacent ones.
    #[inline]
    pub fn contains(&mut self, address: u64, length: usize) -> bool {
        self.slice(address, length).is_some()
            || self.memory.check_range(GuestAddress(address), length)
    }

    /// Reads all of `bytes`; false when that is not all memory.
    #[inline]
    pub fn read(&mut self, address: u64, bytes: &mut [u8]) -> bool {
        match self.slice(address, bytes.len()) {
            Some(slice) => slice.copy_to(bytes) == bytes.len(),
            None => self.memory.read_slice(bytes, GuestAddress(address)).is_ok(),
        }
    }

    /// Writes all of `bytes`; false when that is not all memory.
    #[inline]
    pub fn write(&mut self, address: u64, bytes: &[u8]) -> bool {
        match self.slice(address, bytes.len()) {
            Some(slice) => {
                slice.copy_from(bytes);
                true
            }
            None => self
                .memory
                .write_slice(bytes, GuestAddress(address))
                .is_ok(),
        }
    }
}
