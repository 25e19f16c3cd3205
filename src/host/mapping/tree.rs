// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The table: a tree of three levels.

use super::leaf::Leaf;
use super::row::{Part, Row};
use super::{IovaRange, Mapping, Overlap, Split};
use crate::spec::Iova;

/// The mappings of a domain.
///
/// Leaves of 3 KiB: a search in a million mappings then finds the directory in a processor's own cache.
pub type MappingTable = Tree<128, 128>;

/// A table with so many mappings in a leaf and so many leaves in a branch, at most; four or more. There are as many branches as it takes.
#[derive(Default)]
pub struct Tree<const LEAF: usize, const BRANCH: usize> {
    branches: Row<Row<Leaf<LEAF>, BRANCH>, { usize::MAX }>,
    len: usize,
    /// What all mappings cover, modulo 2^64.
    bytes: u64,
}

/// Where a mapping is, or would be: behind the last one of a leaf, too.
#[derive(Clone, Copy, Default)]
struct Place {
    branch: usize,
    leaf: usize,
    index: usize,
}

impl<const LEAF: usize, const BRANCH: usize> Tree<LEAF, BRANCH> {
    /// An empty table.
    pub fn new() -> Self {
        Self::default()
    }

    /// Number of mappings.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Bytes that are mapped; `u64::MAX` also when it is every address.
    pub fn bytes(&self) -> u64 {
        if self.bytes == 0 && !self.is_empty() {
            return u64::MAX;
        }
        self.bytes
    }

    /// Whether there is no mapping.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Whether any mapping touches the range.
    pub fn overlaps(&self, range: &IovaRange) -> bool {
        // Mappings are disjoint, so of those that begin at or before `last` only the latest can reach `first`.
        let latest = self.last_before(self.after(range.last.0));
        latest.is_some_and(|last| last >= range.first.0)
    }

    /// Adds a mapping. Its guest-physical address is a multiple of [`super::MIN_GRANULE`].
    ///
    /// # Errors
    /// A mapping overlaps it (M41). Nothing is added.
    pub fn insert(&mut self, mapping: &Mapping) -> Result<(), Overlap> {
        let range = &mapping.range;
        let first = range.first.0;
        if self.is_empty() {
            self.branches = Row::of(first, Row::of(first, Leaf::only(mapping)));
        } else {
            let place = self.after(first);
            let reaches = self.last_before(place).is_some_and(|last| last >= first);
            if reaches || self.begins_by(place, range.last.0) {
                return Err(Overlap);
            }
            if self.leaf(place).len() < LEAF {
                self.put(place, mapping);
            } else {
                self.put_into_full(place, mapping);
            }
        }
        self.len += 1;
        self.bytes = self.bytes.wrapping_add(range.length());
        Ok(())
    }

    /// Removes every mapping in the range and hands each to `removed`, ascending.
    ///
    /// # Errors
    /// The range cuts a mapping (U51). Nothing is removed.
    pub fn remove(
        &mut self,
        range: &IovaRange,
        mut removed: impl FnMut(Mapping),
    ) -> Result<(), Split> {
        // The common case: one mapping, named exactly. One descent finds it and takes it out.
        if let Some(place) = self.place_before(self.after(range.first.0)) {
            let mapping = self.leaf(place).mapping(place.index);
            if mapping.range == *range {
                let leaves = self.branches.part_mut(place.branch);
                let leaf = leaves.part_mut(place.leaf);
                leaf.remove(place.index..place.index + 1);
                if leaf.len() < LEAF / 2 {
                    self.close(place);
                }
                self.len -= 1;
                self.bytes = self.bytes.wrapping_sub(range.length());
                removed(mapping);
                return Ok(());
            }
        }
        if self.cuts(range) {
            return Err(Split);
        }
        if !self.is_empty() {
            self.remove_all(range, removed);
        }
        Ok(())
    }

    /// The mapping that an address is in.
    pub fn lookup(&self, iova: Iova) -> Option<Mapping> {
        let place = self.place_before(self.after(iova.0))?;
        let leaf = self.leaf(place);
        (leaf.last_of(place.index) >= iova.0).then(|| leaf.mapping(place.index))
    }

    /// All mappings, ascending.
    pub fn iter(&self) -> impl Iterator<Item = Mapping> + '_ {
        self.from(Place::default())
    }

    /// The mappings that touch the range, ascending.
    pub fn overlapping(&self, range: IovaRange) -> impl Iterator<Item = Mapping> + '_ {
        let after = self.after(range.first.0);
        let start = self
            .place_before(after)
            .filter(|&place| self.leaf(place).last_of(place.index) >= range.first.0);
        self.from(start.unwrap_or(after))
            .take_while(move |mapping| mapping.range.first <= range.last)
    }
}

/// Finding.
impl<const LEAF: usize, const BRANCH: usize> Tree<LEAF, BRANCH> {
    #[inline]
    fn leaf(&self, place: Place) -> &Leaf<LEAF> {
        &self.branches.parts()[place.branch].parts()[place.leaf]
    }

    /// The place after all that begins at or before an address, in the leaf that the address belongs to.
    #[inline]
    fn after(&self, address: u64) -> Place {
        let branch = self.branches.index_of(address);
        let Some((_, leaves)) = self.branches.get(branch) else {
            return Place::default();
        };
        let leaf = leaves.index_of(address);
        let index = leaves.parts()[leaf].up_to(address);
        Place {
            branch,
            leaf,
            index,
        }
    }

    /// Where the mapping before a place is.
    #[inline]
    fn place_before(&self, place: Place) -> Option<Place> {
        if let Some(index) = place.index.checked_sub(1) {
            return Some(Place { index, ..place });
        }
        let branches = self.branches.parts();
        let (branch, leaf) = match place.leaf.checked_sub(1) {
            Some(leaf) => (place.branch, leaf),
            None => {
                let branch = place.branch.checked_sub(1)?;
                (branch, branches[branch].len() - 1)
            }
        };
        let index = branches[branch].parts()[leaf].len() - 1;
        Some(Place {
            branch,
            leaf,
            index,
        })
    }

    /// The last address of the mapping before a place.
    #[inline]
    fn last_before(&self, place: Place) -> Option<u64> {
        let before = self.place_before(place)?;
        Some(self.leaf(before).last_of(before.index))
    }

    /// Whether the mapping at a place begins at or before an address.
    #[inline]
    fn begins_by(&self, place: Place, address: u64) -> bool {
        if let Some(first) = self.leaf(place).first_of(place.index) {
            return first <= address;
        }
        // It is the next leaf's first one. The bound is at hand, and mostly beyond the address.
        let leaves = &self.branches.parts()[place.branch];
        let next = leaves.get(place.leaf + 1).or_else(|| {
            let (bound, leaves) = self.branches.get(place.branch + 1)?;
            Some((bound, leaves.parts().first()?))
        });
        next.is_some_and(|(bound, leaf)| bound <= address && leaf.first() <= address)
    }

    /// Whether a mapping lies across either end of the range.
    fn cuts(&self, range: &IovaRange) -> bool {
        // A mapping that begins before the range and ends behind it crosses its first end.
        let crosses = |last: u64| {
            let latest = self.last_before(self.after(last));
            latest.is_some_and(|reached| reached > last)
        };
        let before = range.first.0.checked_sub(1);
        before.is_some_and(crosses) || crosses(range.last.0)
    }

    /// The mappings from a place on, ascending.
    fn from(&self, place: Place) -> impl Iterator<Item = Mapping> + '_ {
        let mut branches = self.branches.parts().iter().skip(place.branch);
        let leaves = branches.next().map_or(&[][..], Row::parts);
        let mut leaves = leaves.iter().skip(place.leaf);
        let first = leaves.next().into_iter();
        let first = first.flat_map(move |leaf| leaf.mappings(place.index..leaf.len()));
        let later = leaves.chain(branches.flat_map(Row::parts));
        first.chain(later.flat_map(|leaf| leaf.mappings(0..leaf.len())))
    }
}

/// Adding.
impl<const LEAF: usize, const BRANCH: usize> Tree<LEAF, BRANCH> {
    /// Puts a mapping into a leaf that has room.
    #[inline]
    fn put(&mut self, place: Place, mapping: &Mapping) {
        let first = mapping.range.first.0;
        self.branches.lower(place.branch, first);
        let leaves = self.branches.part_mut(place.branch);
        leaves.lower(place.leaf, first);
        leaves.part_mut(place.leaf).insert(place.index, mapping);
    }

    #[cold]
    fn put_into_full(&mut self, mut place: Place, mapping: &Mapping) {
        let first = mapping.range.first.0;
        if self.branches.parts()[place.branch].len() == BRANCH {
            self.part(place);
            place = self.after(first);
        }
        // Mappings that come one after the other, up or down, fill their leaves.
        match place.index {
            index if index == LEAF => self.put_behind(place, mapping),
            0 => self.put_in_front(place, mapping),
            _ => {
                self.make_room(place);
                self.put(self.after(first), mapping);
            }
        }
    }

    /// Makes two of a branch. Of one that grows at an end, only the leaf that is there leaves.
    fn part(&mut self, place: Place) {
        let at = match place.leaf {
            0 => 1,
            leaf if leaf + 1 == BRANCH => leaf,
            _ => BRANCH / 2,
        };
        let (bound, later) = self.branches.part_mut(place.branch).split_off(at);
        self.branches.insert(place.branch + 1, bound, later);
    }

    /// Puts a mapping behind a full leaf: into the next one, or into a new one.
    fn put_behind(&mut self, place: Place, mapping: &Mapping) {
        let next = Place {
            leaf: place.leaf + 1,
            index: 0,
            ..place
        };
        let leaves = self.branches.part_mut(place.branch);
        match leaves.parts().get(next.leaf) {
            Some(leaf) if leaf.len() < LEAF => self.put(next, mapping),
            _ => leaves.insert(next.leaf, mapping.range.first.0, Leaf::another(mapping)),
        }
    }

    /// Puts a mapping in front of a full leaf: into the one before, or into a new one.
    fn put_in_front(&mut self, place: Place, mapping: &Mapping) {
        let first = mapping.range.first.0;
        let leaves = self.branches.part_mut(place.branch);
        // Its bound may have been before the mapping.
        leaves.raise(place.leaf, leaves.parts()[place.leaf].first());
        let before = place.leaf.checked_sub(1);
        let before = before.map(|leaf| (leaf, leaves.parts()[leaf].len()));
        match before {
            Some((leaf, index)) if index < LEAF => {
                let place = Place {
                    leaf,
                    index,
                    ..place
                };
                self.put(place, mapping);
            }
            _ => {
                leaves.insert(place.leaf, first, Leaf::another(mapping));
                self.branches.lower(place.branch, first);
            }
        }
    }

    /// Makes room in a full leaf: shares with the neighbours, and with a new leaf if they are about full as well.
    fn make_room(&mut self, place: Place) {
        let leaves = self.branches.part_mut(place.branch);
        let window = place.leaf.saturating_sub(1)..leaves.len().min(place.leaf + 2);
        let old = &leaves.parts()[window.clone()];
        let mappings: usize = old.iter().map(Part::len).sum();
        // No leaf is full afterwards, and this is not soon done again.
        let room = old.len() * LEAF - mappings;
        let is_full = room < old.len().max(LEAF / 8);
        let new = Leaf::spread(old, old.len() + usize::from(is_full));
        leaves.replace(window, new, Leaf::first);
    }
}

/// Removing.
impl<const LEAF: usize, const BRANCH: usize> Tree<LEAF, BRANCH> {
    /// Removes what is in the range, which cuts nothing. Leaves and branches that lie in it go at once.
    fn remove_all(&mut self, range: &IovaRange, mut removed: impl FnMut(Mapping)) {
        let (first, last) = (range.first.0, range.last.0);
        let branches = self.branches.index_of(first)..self.branches.index_of(last) + 1;
        for branch in branches.clone() {
            let leaves = self.branches.part_mut(branch);
            let indices = leaves.index_of(first)..leaves.index_of(last) + 1;
            for index in indices.clone() {
                let leaf = leaves.part_mut(index);
                let inside = leaf.before(first)..leaf.up_to(last);
                for mapping in leaf.mappings(inside.clone()) {
                    self.bytes = self.bytes.wrapping_sub(mapping.range.length());
                    removed(mapping);
                }
                self.len -= inside.len();
                leaf.remove(inside);
            }
            leaves.drop_empty(indices);
        }
        self.branches.drop_empty(branches);
        // What is left at the ends may be small.
        for address in [last, first] {
            if !self.is_empty() {
                self.close(self.after(address));
            }
        }
    }

    /// Lets an empty leaf go, or joins a small one with a neighbour; then its branch likewise.
    fn close(&mut self, place: Place) {
        let leaves = self.branches.part_mut(place.branch);
        leaves.drop_empty(place.leaf..place.leaf + 1);
        if place.leaf < leaves.len() {
            leaves.join_small(place.leaf);
        }
        self.branches.drop_empty(place.branch..place.branch + 1);
        if place.branch < self.branches.len() {
            self.branches.join_small(place.branch);
        }
    }
}

#[cfg(test)]
impl<const LEAF: usize, const BRANCH: usize> Tree<LEAF, BRANCH> {
    /// Everything is where a search expects it.
    pub fn check(&self) {
        let (mut count, mut latest) = (0, None::<IovaRange>);
        for branch in 0..self.branches.len() {
            let (branch_bound, leaves) = self.branches.get(branch).unwrap();
            assert!((1..=BRANCH).contains(&leaves.len()));
            for place in 0..leaves.len() {
                let (bound, leaf) = leaves.get(place).unwrap();
                assert!((1..=LEAF).contains(&leaf.len()));
                for bound in [branch_bound, bound] {
                    assert!(bound <= leaf.first());
                }
                // A mapping may reach over the bound behind it.
                let before = latest.map(|latest| latest.first.0);
                assert!(before < Some(bound));
                if place == 0 {
                    assert!(before < Some(branch_bound));
                }
                for mapping in leaf.mappings(0..leaf.len()) {
                    assert!(latest.is_none_or(|latest| latest.last < mapping.range.first));
                    latest = Some(mapping.range);
                }
                count += leaf.len();
            }
        }
        assert_eq!(count, self.len);
    }

    /// Bytes of memory that it takes.
    pub fn memory(&self) -> usize {
        let leaves = self.branches.parts().iter().flat_map(Row::parts);
        let rows = self
            .branches
            .parts()
            .iter()
            .map(|row| row.memory() + size_of_val(row));
        self.branches.memory() + rows.sum::<usize>() + leaves.map(Leaf::memory).sum::<usize>()
    }
}
