// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The leaves of the tree: mappings side by side, 24 bytes each.

use std::ops::Range;

use super::row::{Part, up_to};
use super::{IovaRange, MIN_GRANULE, Mapping};
use crate::spec::{Gpa, Iova, MapFlags};

/// The low bits of a guest-physical address, which a granule leaves free, are the flags.
const FLAGS: u64 = MIN_GRANULE - 1;

/// Mappings that a leaf has room for when its first room, for one, is used up: many tables stay small.
const FEW: usize = 16;

/// At most so many mappings, ascending and disjoint.
pub struct Leaf<const MOST: usize> {
    /// One piece of memory: the first addresses, which are searched, and then the rest of each mapping.
    words: Box<[u64]>,
    len: usize,
}

/// A mapping but for its first address: the last one, and the guest-physical address with the flags.
type Rest = [u64; 2];

#[inline]
fn mapping(first: u64, &[last, gpa_and_flags]: &Rest) -> Mapping {
    Mapping {
        range: IovaRange {
            first: Iova(first),
            last: Iova(last),
        },
        gpa: Gpa(gpa_and_flags & !FLAGS),
        flags: MapFlags::from_bits_truncate((gpa_and_flags & FLAGS) as u32),
    }
}

impl<const MOST: usize> Part for Leaf<MOST> {
    const MOST: usize = MOST;

    #[inline]
    fn len(&self) -> usize {
        self.len
    }

    fn append(&mut self, later: Self) {
        self.push_all(later.firsts(), later.rest());
    }
}

/// Reading.
impl<const MOST: usize> Leaf<MOST> {
    fn room(&self) -> usize {
        self.words.len() / 3
    }

    #[inline]
    fn firsts(&self) -> &[u64] {
        &self.words[..self.len]
    }

    #[inline]
    fn rest(&self) -> &[Rest] {
        let (_, rest) = self.words.split_at(self.room());
        &rest.as_chunks().0[..self.len]
    }

    /// The first address of the first mapping.
    pub fn first(&self) -> u64 {
        self.firsts()[0]
    }

    /// The first address of a mapping, if there is one.
    #[inline]
    pub fn first_of(&self, index: usize) -> Option<u64> {
        self.firsts().get(index).copied()
    }

    /// The last address of a mapping.
    #[inline]
    pub fn last_of(&self, index: usize) -> u64 {
        self.rest()[index][0]
    }

    pub fn mapping(&self, index: usize) -> Mapping {
        mapping(self.firsts()[index], &self.rest()[index])
    }

    /// Some of the mappings, ascending.
    pub fn mappings(&self, indices: Range<usize>) -> impl Iterator<Item = Mapping> + '_ {
        let firsts = self.firsts()[indices.clone()].iter();
        let all = firsts.zip(&self.rest()[indices]);
        all.map(|(&first, rest)| mapping(first, rest))
    }

    /// How many mappings begin at or before an address.
    #[inline]
    pub fn up_to(&self, address: u64) -> usize {
        up_to(self.firsts(), address)
    }

    /// How many mappings begin before an address.
    pub fn before(&self, address: u64) -> usize {
        address.checked_sub(1).map_or(0, |last| self.up_to(last))
    }

    /// Bytes of memory that it takes.
    #[cfg(test)]
    pub fn memory(&self) -> usize {
        size_of::<Self>() + size_of_val(&*self.words)
    }
}

/// Changing.
impl<const MOST: usize> Leaf<MOST> {
    fn with_room(room: usize) -> Self {
        Self {
            words: vec![0; 3 * room].into(),
            len: 0,
        }
    }

    /// Of one mapping, in a tree that has no other.
    pub fn only(mapping: &Mapping) -> Self {
        let mut leaf = Self::with_room(1);
        leaf.insert(0, mapping);
        leaf
    }

    /// Of one mapping, in a tree that has others.
    pub fn another(mapping: &Mapping) -> Self {
        let mut leaf = Self::with_room(MOST);
        leaf.insert(0, mapping);
        leaf
    }

    #[inline]
    fn arrays_mut(&mut self) -> (&mut [u64], &mut [Rest]) {
        let room = self.room();
        let (firsts, rest) = self.words.split_at_mut(room);
        (firsts, rest.as_chunks_mut().0)
    }

    #[cold]
    fn grow(&mut self, wanted: usize) {
        let room = if wanted <= FEW.min(MOST) {
            FEW.min(MOST)
        } else {
            MOST
        };
        let mut new = Self::with_room(room);
        new.push_all(self.firsts(), self.rest());
        *self = new;
    }

    fn push_all(&mut self, firsts: &[u64], rest: &[Rest]) {
        let (len, end) = (self.len, self.len + firsts.len());
        if end > self.room() {
            self.grow(end);
        }
        let (all_firsts, all_rest) = self.arrays_mut();
        all_firsts[len..end].copy_from_slice(firsts);
        all_rest[len..end].copy_from_slice(rest);
        self.len = end;
    }

    /// Puts a mapping in its place. There are fewer than the most.
    #[inline]
    pub fn insert(&mut self, index: usize, mapping: &Mapping) {
        debug_assert_eq!(mapping.gpa.0 & FLAGS, 0);
        let len = self.len;
        if len == self.room() {
            self.grow(len + 1);
        }
        let (firsts, rest) = self.arrays_mut();
        firsts.copy_within(index..len, index + 1);
        rest.copy_within(index..len, index + 1);
        firsts[index] = mapping.range.first.0;
        let gpa_and_flags = mapping.gpa.0 | u64::from(mapping.flags.bits());
        rest[index] = [mapping.range.last.0, gpa_and_flags];
        self.len += 1;
    }

    /// Removes some mappings, neighbours.
    #[inline]
    pub fn remove(&mut self, indices: Range<usize>) {
        let len = self.len;
        let (firsts, rest) = self.arrays_mut();
        firsts.copy_within(indices.end..len, indices.start);
        rest.copy_within(indices.end..len, indices.start);
        self.len -= indices.len();
    }

    /// Moves the mappings of some leaves, neighbours, to so many leaves that are as good as equally full.
    pub fn spread(from: &[Self], leaves: usize) -> Vec<Self> {
        let firsts: Vec<u64> = from.iter().flat_map(Self::firsts).copied().collect();
        let rest: Vec<Rest> = from.iter().flat_map(Self::rest).copied().collect();
        let each = firsts.len().div_ceil(leaves);
        let parts = firsts.chunks(each).zip(rest.chunks(each));
        parts
            .map(|(firsts, rest)| {
                let mut leaf = Self::with_room(MOST);
                leaf.push_all(firsts, rest);
                leaf
            })
            .collect()
    }
}
