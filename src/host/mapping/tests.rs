// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The table against a naive model: a flat list, searched from end to end.
//!
//! The trees here have small leaves and branches, so that a few dozen mappings split and join them in every way.

use proptest::prelude::*;

use super::tree::Tree;
use super::*;

const PAGE: u64 = 0x1000;
/// Pages that are used: at the first or the last addresses.
const PAGES: u64 = 160;

#[derive(Clone, Debug)]
enum Op {
    /// Pages; the number of each is one of [`PAGES`].
    Map {
        first: u64,
        count: u64,
        flags: u32,
    },
    /// Mappings of a page each, with gaps or without, up or down.
    MapSome {
        first: u64,
        count: u64,
        step: i64,
    },
    Unmap {
        first: u64,
        count: u64,
    },
    /// Bytes, not pages.
    UnmapBytes {
        first: u64,
        last: u64,
    },
    /// A mapping that is there.
    UnmapOne(prop::sample::Index),
    /// The whole of mappings that are there, neighbours.
    UnmapSome(prop::sample::Index, prop::sample::Index),
    UnmapAll,
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let page = 0..PAGES;
    let count = prop_oneof![3 => Just(1), 1 => 2..6u64];
    let bytes = 0..PAGES * PAGE;
    let index = any::<prop::sample::Index>;
    let op = prop_oneof![
        12 => (page.clone(), count.clone(), 0..8u32)
            .prop_map(|(first, count, flags)| Op::Map { first, count, flags }),
        4 => (page.clone(), 1..60u64, prop::sample::select(vec![-3, -1, 1, 2]))
            .prop_map(|(first, count, step)| Op::MapSome { first, count, step }),
        2 => (page.clone(), count).prop_map(|(first, count)| Op::Unmap { first, count }),
        1 => (page, 1..PAGES).prop_map(|(first, count)| Op::Unmap { first, count }),
        1 => (bytes.clone(), bytes).prop_map(|(a, b)| Op::UnmapBytes { first: a.min(b), last: a.max(b) }),
        8 => index().prop_map(Op::UnmapOne),
        2 => (index(), index()).prop_map(|(a, b)| Op::UnmapSome(a, b)),
        1 => Just(Op::UnmapAll),
    ];
    prop::collection::vec(op, 1..if cfg!(miri) { 12 } else { 120 })
}

/// All mappings, in no order.
#[derive(Default)]
struct Model(Vec<Mapping>);

impl Model {
    fn touching(&self, range: &IovaRange) -> Vec<Mapping> {
        let touches = |m: &&Mapping| m.range.intersection(range).is_some();
        let mut found: Vec<_> = self.0.iter().filter(touches).copied().collect();
        found.sort_by_key(|m| m.range.first);
        found
    }

    fn insert(&mut self, mapping: &Mapping) -> Result<(), Overlap> {
        if !self.touching(&mapping.range).is_empty() {
            return Err(Overlap);
        }
        self.0.push(*mapping);
        Ok(())
    }

    fn remove(&mut self, range: &IovaRange) -> Result<Vec<Mapping>, Split> {
        let found = self.touching(range);
        if !found.iter().all(|m| range.covers(&m.range)) {
            return Err(Split);
        }
        self.0.retain(|m| !range.covers(&m.range));
        Ok(found)
    }

    fn bytes(&self) -> u64 {
        let all: u128 = self
            .0
            .iter()
            .map(|m| u128::from(m.range.last.0 - m.range.first.0) + 1)
            .sum();
        u64::try_from(all).unwrap_or(u64::MAX)
    }
}

/// A table and its model, at some addresses.
struct Both<const LEAF: usize, const BRANCH: usize> {
    table: Tree<LEAF, BRANCH>,
    model: Model,
    base: u64,
}

impl<const LEAF: usize, const BRANCH: usize> Both<LEAF, BRANCH> {
    fn new(base: u64) -> Self {
        let (table, model) = Default::default();
        Self { table, model, base }
    }

    /// Pages, as far as there are.
    fn pages(&self, first: u64, count: u64) -> IovaRange {
        let last = (first + count).min(PAGES) * PAGE - 1;
        IovaRange::new(self.base + first * PAGE, self.base + last).expect("a page")
    }

    fn map(&mut self, range: IovaRange, flags: u32) {
        let mapping = Mapping {
            range,
            gpa: Gpa(range.first.0.rotate_left(20) & !(PAGE - 1)),
            flags: MapFlags::from_bits_truncate(flags),
        };
        let expected = self.model.insert(&mapping);
        assert_eq!(self.table.insert(&mapping), expected, "{mapping:x?}");
    }

    fn unmap(&mut self, range: IovaRange) {
        let mut removed = Vec::new();
        let result = self.table.remove(&range, |mapping| removed.push(mapping));
        let result = result.map(|()| removed);
        assert_eq!(result, self.model.remove(&range), "{range:x?}");
    }

    fn ascending(&self) -> Vec<Mapping> {
        self.model.touching(&IovaRange::ALL)
    }

    fn run(&mut self, op: &Op) {
        match *op {
            Op::Map {
                first,
                count,
                flags,
            } => self.map(self.pages(first, count), flags),
            Op::MapSome { first, count, step } => {
                let mut page = first;
                for number in 0..count {
                    self.map(self.pages(page, 1), number as u32);
                    let Some(next) = page.checked_add_signed(step).filter(|&next| next < PAGES)
                    else {
                        break;
                    };
                    page = next;
                }
            }
            Op::Unmap { first, count } => self.unmap(self.pages(first, count)),
            Op::UnmapBytes { first, last } => {
                self.unmap(IovaRange::new(self.base + first, self.base + last).expect("a range"));
            }
            Op::UnmapOne(_) | Op::UnmapSome(..) if self.model.0.is_empty() => {}
            Op::UnmapOne(index) => self.unmap(index.get(&self.model.0).range),
            Op::UnmapSome(a, b) => {
                let (a, b) = (index_range(&a, self), index_range(&b, self));
                self.unmap(a.hull(&b));
            }
            Op::UnmapAll => self.unmap(IovaRange::ALL),
        }
    }

    fn check(&self) {
        self.table.check();
        let all = self.ascending();
        assert_eq!(self.table.iter().collect::<Vec<_>>(), all);
        assert_eq!(self.table.len(), all.len());
        assert_eq!(self.table.is_empty(), all.is_empty());
        assert_eq!(self.table.bytes(), self.model.bytes());
    }

    /// Looks from an address, and at a range from it on.
    fn look(&self, offset: u64, length: u64) {
        let first = self.base.wrapping_add(offset);
        let range = IovaRange::new(first, first.saturating_add(length)).expect("a range");
        let found = self.model.touching(&range);
        assert_eq!(self.table.overlaps(&range), !found.is_empty(), "{range:x?}");
        assert_eq!(
            self.table.overlapping(range).collect::<Vec<_>>(),
            found,
            "{range:x?}"
        );
        let here = found.first().filter(|m| m.range.contains(range.first));
        assert_eq!(self.table.lookup(range.first), here.copied(), "{range:x?}");
    }
}

fn index_range<const L: usize, const B: usize>(
    index: &prop::sample::Index,
    both: &Both<L, B>,
) -> IovaRange {
    index.get(&both.model.0).range
}

/// Runs a sequence at the first addresses, and at the last.
fn run<const LEAF: usize, const BRANCH: usize>(ops: &[Op], looks: &[(u64, u64)]) {
    for base in [0, 0_u64.wrapping_sub(PAGES * PAGE)] {
        let mut both = Both::<LEAF, BRANCH>::new(base);
        for op in ops {
            both.run(op);
            both.check();
        }
        for &(offset, length) in looks {
            both.look(offset, length);
        }
        for mapping in both.ascending() {
            let (first, last) = (mapping.range.first.0, mapping.range.last.0);
            for address in [first.wrapping_sub(1), first, last, last.wrapping_add(1)] {
                both.look(address.wrapping_sub(base), 0);
                both.look(address.wrapping_sub(base), PAGE);
            }
        }
        both.look(0_u64.wrapping_sub(base), u64::MAX);
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: if cfg!(miri) { 2 } else { 600 },
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn every_result_agrees_with_a_naive_model(
        ops in ops(),
        looks in prop::collection::vec((0..PAGES * PAGE, 0..8 * PAGE), 1..20),
    ) {
        // The narrowest that there can be, and a width that is no power of two.
        run::<4, 4>(&ops, &looks);
        run::<9, 6>(&ops, &looks);
    }

    #[test]
    fn a_search_in_a_row_finds_what_one_from_end_to_end_finds(
        mut numbers in prop::collection::vec(0..200u64, 0..100),
        limit in 0..200u64,
    ) {
        numbers.sort_unstable();
        let expected = numbers.iter().filter(|&&number| number <= limit).count();
        prop_assert_eq!(row::up_to(&numbers, limit), expected);
        numbers.push(u64::MAX);
        prop_assert_eq!(row::up_to(&numbers, u64::MAX), numbers.len());
    }
}

#[test]
fn every_address_in_one_mapping_is_all_bytes_and_its_parts_cannot_be_removed__m40_u51() {
    let mut both = Both::<4, 4>::new(0);
    both.map(IovaRange::ALL, 3);
    both.check();
    assert_eq!(both.table.bytes(), u64::MAX);
    both.look(u64::MAX, 0);
    both.unmap(IovaRange::new(1, u64::MAX).unwrap());
    both.unmap(IovaRange::new(0, u64::MAX - 1).unwrap());
    both.map(IovaRange::new(u64::MAX, u64::MAX).unwrap(), 3);
    both.unmap(IovaRange::ALL);
    both.check();
}

/// Some place among so many, a power of two: each index has its own, as if at random.
fn scattered(index: u64, count: u64) -> u64 {
    let half = count.trailing_zeros() / 2;
    (0..3).fold(index, |place, _| {
        // An odd factor permutes, and so does the fold.
        let place = place.wrapping_mul(0x9e37_79b9_7f4a_7c15) % count;
        place ^ place >> half
    })
}

fn page(number: u64) -> Mapping {
    Mapping {
        range: IovaRange::new(number * PAGE, number * PAGE + (PAGE - 1)).unwrap(),
        gpa: Gpa(number * PAGE),
        flags: MapFlags::READ,
    }
}

/// The order in which a number of pages are mapped.
type Order = fn(u64, u64) -> u64;

const ORDERS: [(&str, Order); 4] = [
    ("ascending", |index, _| index),
    ("descending", |index, count| count - 1 - index),
    ("as if at random", scattered),
    // Each between two that are far from each other.
    ("evenly", |index, count| {
        index.wrapping_mul(0x9e37_79b9_7f4a_7c15) % count
    }),
];

#[test]
#[cfg_attr(miri, ignore = "too many mappings")]
fn mappings_take_at_most_34_bytes_each() {
    const COUNT: u64 = 1 << 17;
    for (name, order) in ORDERS {
        let mut table = MappingTable::new();
        let mut most: f64 = 0.0;
        for index in 0..COUNT {
            table.insert(&page(order(index, COUNT))).unwrap();
            if index >= COUNT / 4 && index % (COUNT / 64) == COUNT / 64 - 1 {
                most = most.max(table.memory() as f64 / (index + 1) as f64);
            }
        }
        let each = table.memory() as f64 / COUNT as f64;
        // On the way there, too.
        assert!(
            each <= 34.0 && most <= 37.0,
            "{name}: {each}, at most {most}"
        );
        table.check();
    }
}

#[test]
fn a_table_of_the_full_width_splits_and_joins() {
    let count = if cfg!(miri) { 1 << 8 } else { 1 << 15 };
    for (name, order) in ORDERS {
        let mut table = MappingTable::new();
        for index in 0..count {
            table.insert(&page(order(index, count))).unwrap();
        }
        table.check();
        assert!(table.iter().eq((0..count).map(page)), "{name}");
        // Seven of eight go, one by one: leaves join.
        for index in (0..count).filter(|index| index % 8 != 0) {
            let mapping = page(order(index, count));
            let mut removed = None;
            table
                .remove(&mapping.range, |mapping| removed = Some(mapping))
                .unwrap();
            assert_eq!(removed, Some(mapping));
        }
        table.check();
        assert_eq!(table.len() as u64, count / 8);
        // Three quarters of the addresses in the middle go at once.
        let range = IovaRange::new(count / 8 * PAGE, count / 8 * 7 * PAGE - 1).unwrap();
        let expected: Vec<_> = table.overlapping(range).collect();
        let mut removed = Vec::new();
        table
            .remove(&range, |mapping| removed.push(mapping))
            .unwrap();
        assert_eq!(removed, expected);
        table.check();
        assert_eq!(table.len() as u64, count / 8 - removed.len() as u64);
    }
}

#[test]
fn a_table_of_few_mappings_is_small() {
    // As many domains as there can be, with a few mappings each, are some dozen MiB.
    for (count, most) in [(0, 0), (1, 128), (16, 512)] {
        let mut table = MappingTable::new();
        for number in 0..count {
            table.insert(&page(number)).unwrap();
        }
        assert!(table.memory() <= most, "{count}: {}", table.memory());
    }
}
