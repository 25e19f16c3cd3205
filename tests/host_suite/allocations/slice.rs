// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Which allocations fail in this run.

use std::env;
use std::process::Command;
use std::sync::OnceLock;

/// A run that is not exhaustive takes one of so many.
const STRIDE: usize = 4;

/// Numbers of allocations, ascending and without end.
pub fn points() -> impl Iterator<Item = usize> {
    let slice = slice();
    (1..).filter(move |nth| *nth == 1 || slice.is_none_or(|slice| nth % STRIDE == slice))
}

/// The same without the first, for operations that take long.
pub fn some_points() -> impl Iterator<Item = usize> {
    let slice = slice();
    (1..).filter(move |nth| slice.is_none_or(|slice| nth % STRIDE == slice))
}

/// `None`: every allocation fails.
fn slice() -> Option<usize> {
    static SLICE: OnceLock<Option<usize>> = OnceLock::new();
    *SLICE.get_or_init(|| {
        if env::var("LAB_EXHAUSTIVE").is_ok_and(|value| value == "1") {
            println!("allocations: every one fails");
            return None;
        }
        let number = match env::var("LAB_SLICE") {
            Ok(number) => number.parse().expect("LAB_SLICE is a number"),
            Err(_) => commit(),
        };
        let slice = number % STRIDE;
        println!("allocations: slice {slice} of {STRIDE} fails (LAB_SLICE, LAB_EXHAUSTIVE=1)");
        Some(slice)
    })
}

/// A number that the commit chooses; 0 where there is none.
fn commit() -> usize {
    let commit = Command::new("git")
        .args(["-C", env!("CARGO_MANIFEST_DIR"), "rev-parse", "HEAD"])
        .output();
    let digits = commit
        .ok()
        .and_then(|output| String::from_utf8(output.stdout).ok());
    let digits = digits.as_deref().and_then(|digits| digits.get(..8));
    digits
        .and_then(|digits| usize::from_str_radix(digits, 16).ok())
        .unwrap_or(0)
}
