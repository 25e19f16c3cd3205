// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The mapping table alone, beside the `BTreeMap` that it was: the same calls on both, in turns. Times are of the
//! processor.

use std::hint::black_box;

use vhost_device_iommu::host::mapping::{IovaRange, Mapping, MappingTable};
use vhost_device_iommu::spec::{Gpa, Iova, MapFlags};

use super::tree_table::TreeTable;
use super::{Figure, cpu_time, median};

const PAGE: u64 = 4096;
const MANY: u64 = 1 << 20;
/// Rounds of each, in turns with the other.
const ROUNDS: usize = 9;
/// Pairs, or look-ups, of a round.
const CALLS: u64 = 1 << 18;
/// So many MAPs, and then their UNMAPs.
const BATCH: usize = 128;

/// What is measured of a table.
trait Table: Default {
    fn map(&mut self, mapping: &Mapping);
    fn unmap(&mut self, range: &IovaRange, removed: &mut Vec<Mapping>);
    fn find(&self, iova: Iova) -> Option<Mapping>;
}

macro_rules! table {
    ($name:ty) => {
        impl Table for $name {
            fn map(&mut self, mapping: &Mapping) {
                self.insert(mapping).expect("no overlap");
            }
            fn unmap(&mut self, range: &IovaRange, removed: &mut Vec<Mapping>) {
                self.remove(range, |mapping| removed.push(mapping))
                    .expect("nothing is cut");
            }
            fn find(&self, iova: Iova) -> Option<Mapping> {
                self.lookup(iova)
            }
        }
    };
}

table!(MappingTable);
table!(TreeTable);

/// Nanoseconds a call.
#[derive(Default)]
struct Times {
    pairs: Vec<f64>,
    look_ups: Vec<f64>,
    unmap: Vec<f64>,
    end: Vec<f64>,
}

pub fn figures() -> Vec<Figure> {
    let mut figures = Vec::new();
    for (live, goals) in [
        (1 << 10, ["<= 1.0 x", "", "", ""]),
        (MANY, ["", "<= 1.0 x", "<= 0.25 x", "<= 0.25 x"]),
    ] {
        let (mut ours, mut tree) = (Times::default(), Times::default());
        for _ in 0..ROUNDS {
            measure::<MappingTable>(live, &mut ours);
            measure::<TreeTable>(live, &mut tree);
        }
        let parts = [
            ("a MAP and an UNMAP among", ours.pairs, tree.pairs),
            ("a look-up among", ours.look_ups, tree.look_ups),
            ("UNMAP at once of", ours.unmap, tree.unmap),
            ("the end of a domain of", ours.end, tree.end),
        ];
        for ((what, ours, tree), goal) in parts.into_iter().zip(goals) {
            let (ours, tree) = (median(ours), median(tree));
            let limit = goal.trim_matches(|c: char| !c.is_ascii_digit()).parse();
            figures.push(Figure {
                what: format!("{what} {live} mappings"),
                ours: time(ours),
                beside: Some((format!("`BTreeMap` {}", time(tree)), ours / tree)),
                goal,
                met: limit.is_ok_and(|limit: f64| ours <= limit * tree),
            });
        }
    }
    figures
}

fn time(nanoseconds: f64) -> String {
    match nanoseconds {
        ..1e3 => format!("{nanoseconds:.0} ns"),
        ..1e6 => format!("{:.1} us", nanoseconds / 1e3),
        _ => format!("{:.1} ms", nanoseconds / 1e6),
    }
}

/// Some place among `live` ones, a power of two: each index has its own.
fn scattered(index: u64, live: u64) -> u64 {
    let half = live.trailing_zeros() / 2;
    let mut place = index & (live - 1);
    for _ in 0..3 {
        // An odd factor permutes, and so does the fold.
        place = place.wrapping_mul(0x9e37_79b9_7f4a_7c15) & (live - 1);
        place ^= place >> half;
    }
    place
}

/// A page between the live mappings, or one of them.
fn page(first: u64) -> Mapping {
    Mapping {
        range: IovaRange::new(first, first + (PAGE - 1)).expect("a range"),
        gpa: Gpa(first),
        flags: MapFlags::READ | MapFlags::WRITE,
    }
}

fn filled<T: Table>(live: u64) -> T {
    let mut table = T::default();
    for index in 0..live {
        table.map(&page(scattered(index, live) * 2 * PAGE));
    }
    table
}

fn measure<T: Table>(live: u64, times: &mut Times) {
    let mut table: T = filled(live);
    let between = |index| page(scattered(index, live) * 2 * PAGE + PAGE);
    let mut removed = Vec::new();

    let begin = cpu_time::now();
    for first in (0..CALLS).step_by(BATCH) {
        let batch = || (first..first + BATCH as u64).map(between);
        batch().for_each(|mapping| table.map(&mapping));
        batch().for_each(|mapping| table.unmap(&mapping.range, &mut removed));
        removed.clear();
    }
    times.pairs.push(each(begin, CALLS));

    let begin = cpu_time::now();
    for index in 0..CALLS {
        black_box(table.find(Iova(scattered(index, live) * 2 * PAGE)));
    }
    times.look_ups.push(each(begin, CALLS));

    let begin = cpu_time::now();
    table.unmap(&IovaRange::ALL, &mut removed);
    times.unmap.push(each(begin, 1));
    assert_eq!(removed.len() as u64, live);
    drop((table, removed));

    let table: T = filled(live);
    let begin = cpu_time::now();
    drop(table);
    times.end.push(each(begin, 1));
}

/// Nanoseconds a call.
fn each(begin: u64, calls: u64) -> f64 {
    (cpu_time::now() - begin) as f64 / calls as f64
}
