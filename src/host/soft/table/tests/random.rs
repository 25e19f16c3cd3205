// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Random tables against a naive reader: small ones, so dense that accesses end in every way.

use std::cell::RefCell;
use std::collections::BTreeMap;

use proptest::prelude::*;
use proptest::test_runner::TestRunner;

use super::*;
use crate::fuzzing::tables::{Bench, FRAMES, SLOTS};

const CASES: u32 = if cfg!(miri) { 4 } else { 300 };
const ACCESSES: usize = if cfg!(miri) { 12 } else { 60 };

/// An entry: the frame that it leads to, if any, and other bits.
type Entry = (Option<u8>, u64);

#[derive(Debug)]
struct Case {
    input_bits: u8,
    granule: u8,
    entries: Vec<Entry>,
    accesses: Vec<([u8; 5], Option<u64>, Needed)>,
}

/// A bit that is set so often.
fn bit(place: u32, often: f64) -> impl Strategy<Value = u64> {
    prop::bool::weighted(often).prop_map(move |set| u64::from(set) << place)
}

fn x86_64_entry() -> impl Strategy<Value = Entry> {
    let target = prop_oneof![
        9 => (0..FRAMES).prop_map(|frame| (Some(frame), 0)),
        // An address that all sizes can have.
        3 => (0_u64..9).prop_map(|address| (None, address << 30)),
    ];
    let permits = (bit(0, 0.95), bit(1, 0.9), bit(2, 0.95), bit(63, 0.07));
    let others = (
        bit(5, 0.5),
        bit(6, 0.5),
        bit(7, 0.2),
        bit(12, 0.1),
        bit(9, 0.5),
    );
    (target, permits, others).prop_map(|((frame, address), permits, others)| {
        let permits = permits.0 | permits.1 | permits.2 | permits.3;
        let others = others.0 | others.1 | others.2 | others.3 | others.4;
        (frame, address | permits | others)
    })
}

fn arm64_entry() -> impl Strategy<Value = Entry> {
    let kind = prop_oneof![16 => Just(3), 3 => Just(1), 1 => Just(0), 1 => Just(2)];
    let of_pages = (bit(6, 0.95), bit(7, 0.2), bit(10, 0.95), bit(54, 0.1));
    let of_tables = (bit(60, 0.1), bit(61, 0.05), bit(62, 0.1));
    let others = (
        bit(51, 0.5),
        bit(52, 0.2),
        bit(12, 0.1),
        bit(49, 0.1),
        bit(40, 0.05),
    );
    (0..FRAMES, kind, of_pages, of_tables, others).prop_map(
        |(frame, kind, pages, tables, others): (_, u64, _, _, _)| {
            let pages = pages.0 | pages.1 | pages.2 | pages.3;
            let tables = tables.0 | tables.1 | tables.2;
            let others = others.0 | others.1 | others.2 | others.3 | others.4;
            (Some(frame), kind | pages | tables | others)
        },
    )
}

fn case<S: Strategy<Value = Entry>>(
    shape: impl Strategy<Value = (u8, u8)>,
    entry: S,
) -> impl Strategy<Value = Case> {
    let places = usize::from(FRAMES) * usize::from(SLOTS);
    // Addresses of any bits are outside, nearly all.
    let stray = prop_oneof![19 => Just(None), 1 => any::<u64>().prop_map(Some)];
    let needed = (
        any::<bool>(),
        prop::bool::weighted(0.3),
        prop::bool::weighted(0.02),
    )
        .prop_map(|(write, exec, privileged)| Needed {
            write,
            exec,
            privileged,
        });
    (
        shape,
        prop::collection::vec(entry, places),
        prop::collection::vec((any::<[u8; 5]>(), stray, needed), ACCESSES),
    )
        .prop_map(|((input_bits, granule), entries, accesses)| Case {
            input_bits,
            granule,
            entries,
            accesses,
        })
}

/// How often accesses ended in each way.
type Ends = BTreeMap<String, usize>;

fn run(format: TableFormat, case: &Case, ends: &mut Ends) {
    let mut bench = Bench::new(format, case.input_bits, case.granule, 0);
    let places = (0..FRAMES).flat_map(|frame| (0..SLOTS).map(move |slot| (frame, slot)));
    for ((frame, slot), &(target, bits)) in places.zip(&case.entries) {
        let address = target.map_or(0, |target| bench.frame(target));
        bench.set(bench.entry(frame, slot), address | bits);
    }
    for &(slots, stray, needed) in &case.accesses {
        let iova = stray.unwrap_or_else(|| bench.address(&slots));
        let mut count = |end: String| *ends.entry(end).or_default() += 1;
        match bench.access(iova, needed) {
            Ok(page) => {
                count(format!("{:#x} bytes", page.mapping.range.length()));
                count(format!("{:?}, exec {}", page.mapping.flags, page.exec));
            }
            Err(error) => count(format!("{error:?}")),
        }
    }
    bench.end();
}

/// The ends of accesses in many tables of a format.
fn ends(format: TableFormat, cases: impl Strategy<Value = Case>) -> Ends {
    let ends = RefCell::new(Ends::new());
    let mut runner = TestRunner::new(ProptestConfig {
        cases: CASES,
        failure_persistence: None,
        ..ProptestConfig::default()
    });
    let result = runner.run(&cases, |case| {
        run(format, &case, &mut ends.borrow_mut());
        Ok(())
    });
    result.expect("the walk agrees with the naive reader");
    ends.into_inner()
}

/// Everything has happened, and not just once.
fn assert_all_happened(ends: &Ends, expected: &[&str]) {
    // A few tables are too few for that.
    if cfg!(miri) {
        return;
    }
    let all = ["Absent", "Permission", "Privileged", "Outside", "NoMemory"];
    for end in all.iter().chain(expected) {
        let count = ends.get(*end).copied().unwrap_or_default();
        assert!(count >= 3, "{end}: {count} times; {ends:#?}");
    }
}

#[test]
fn random_tables_of_x86_are_read_as_a_naive_reader_reads_them__x85_x106() {
    let shape = prop_oneof![Just((48, 12)), Just((57, 12))];
    let ends = ends(TableFormat::X86_64, case(shape, x86_64_entry()));
    assert_all_happened(
        &ends,
        &[
            "Malformed",
            "0x1000 bytes",
            "0x200000 bytes",
            "0x40000000 bytes",
        ],
    );
    assert!(!ends.contains_key("Contended"));
}

#[test]
fn random_tables_of_arm_are_read_as_a_naive_reader_reads_them__x85_x107() {
    let shape = (25_u8..=48, prop_oneof![Just(12), Just(14), Just(16)]);
    let ends = ends(TableFormat::Arm64, case(shape, arm64_entry()));
    assert_all_happened(
        &ends,
        &[
            "0x1000 bytes",
            "0x4000 bytes",
            "0x10000 bytes",
            "0x200000 bytes",
            "0x2000000 bytes",
            "0x20000000 bytes",
            "0x40000000 bytes",
        ],
    );
    assert!(!ends.contains_key("Malformed"));
}
