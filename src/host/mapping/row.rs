// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The directory of the tree: parts in a row, and the address at which each begins.

use std::ops::Range;

/// What a [`Row`] is made of: it has things in it, ascending.
pub trait Part: Sized {
    /// The most things that it has.
    const MOST: usize;

    /// How many it has. A part of a row has some, except while they are being removed.
    fn len(&self) -> usize;

    /// Takes over all that a later part has. There is room.
    fn append(&mut self, later: Self);
}

/// Parts, ascending, and a bound for each: at or before everything in it, and after everything in the part before.
pub struct Row<T, const MOST: usize> {
    bounds: Vec<u64>,
    parts: Vec<T>,
}

impl<T, const MOST: usize> Default for Row<T, MOST> {
    fn default() -> Self {
        Self {
            bounds: Vec::new(),
            parts: Vec::new(),
        }
    }
}

impl<T, const MOST: usize> Row<T, MOST> {
    /// Of one part.
    pub fn of(bound: u64, part: T) -> Self {
        // Not `vec!`, for its room: many tables stay small.
        Self {
            bounds: Box::<[_]>::from([bound]).into(),
            parts: Box::<[_]>::from([part]).into(),
        }
    }

    pub fn parts(&self) -> &[T] {
        &self.parts
    }

    #[inline]
    pub fn part_mut(&mut self, index: usize) -> &mut T {
        &mut self.parts[index]
    }

    /// A part and its bound, if there is such a part.
    #[inline]
    pub fn get(&self, index: usize) -> Option<(u64, &T)> {
        Some((*self.bounds.get(index)?, self.parts.get(index)?))
    }

    /// The part that an address belongs to: 0 without parts.
    #[inline]
    pub fn index_of(&self, address: u64) -> usize {
        up_to(&self.bounds, address).saturating_sub(1)
    }

    /// Something that begins at the address goes into a part.
    #[inline]
    pub fn lower(&mut self, index: usize, address: u64) {
        let bound = &mut self.bounds[index];
        *bound = address.min(*bound);
    }

    /// The part begins there, and something may come before it.
    pub fn raise(&mut self, index: usize, address: u64) {
        self.bounds[index] = address;
    }

    pub fn insert(&mut self, index: usize, bound: u64, part: T) {
        self.bounds.insert(index, bound);
        self.parts.insert(index, part);
    }

    /// Puts parts, each with its bound, where others were.
    pub fn replace(&mut self, indices: Range<usize>, new: Vec<T>, bound: impl Fn(&T) -> u64) {
        self.bounds.splice(indices.clone(), new.iter().map(bound));
        self.parts.splice(indices, new);
    }

    /// Takes out the parts from an index on, of which there are some, with the bound of all of them.
    pub fn split_off(&mut self, index: usize) -> (u64, Self) {
        let later = Self {
            bounds: self.bounds.split_off(index),
            parts: self.parts.split_off(index),
        };
        (later.bounds[0], later)
    }

    /// Bytes of memory that it takes, without what the parts take.
    #[cfg(test)]
    pub fn memory(&self) -> usize {
        size_of::<u64>() * self.bounds.capacity()
            + size_of::<T>() * (self.parts.capacity() - self.parts.len())
    }
}

impl<T: Part, const MOST: usize> Row<T, MOST> {
    /// Removes the parts that nothing is left of. They are neighbours, and lie among these.
    pub fn drop_empty(&mut self, indices: Range<usize>) {
        let is_empty = |index: &usize| self.parts[*index].len() == 0;
        let Some(first) = indices.clone().find(is_empty) else {
            return;
        };
        let count = (first..indices.end).take_while(is_empty).count();
        self.bounds.drain(first..first + count);
        self.parts.drain(first..first + count);
    }

    /// Joins a part that has become small with a neighbour, if that leaves room.
    #[inline]
    pub fn join_small(&mut self, index: usize) {
        if self.parts[index].len() < T::MOST / 2 {
            self.join(index);
        }
    }

    fn join(&mut self, index: usize) {
        let fit = |left: usize| match self.parts.get(left..left + 2) {
            Some([left, right]) => left.len() + right.len() <= T::MOST / 4 * 3,
            _ => false,
        };
        let left = match index.checked_sub(1) {
            Some(left) if fit(left) => left,
            _ if fit(index) => index,
            _ => return,
        };
        self.bounds.remove(left + 1);
        let later = self.parts.remove(left + 1);
        self.parts[left].append(later);
    }
}

/// A row can be part of a row.
impl<T, const MOST: usize> Part for Row<T, MOST> {
    const MOST: usize = MOST;

    fn len(&self) -> usize {
        self.parts.len()
    }

    fn append(&mut self, mut later: Self) {
        self.bounds.append(&mut later.bounds);
        self.parts.append(&mut later.parts);
    }
}

/// Numbers in a line of a processor's cache.
const LINE: usize = 8;

/// How many of some ascending numbers are at most `limit`.
///
/// One number of each line is looked at, and then a line. The processor fetches those lines at once, where a binary search
/// waits for one after the other.
#[inline]
pub fn up_to(numbers: &[u64], limit: u64) -> usize {
    let lines = numbers.chunks_exact(LINE);
    let before = LINE * lines.filter(|line| line[LINE - 1] <= limit).count();
    let line = numbers[before..].iter().take(LINE);
    before + line.filter(|&&number| number <= limit).count()
}
