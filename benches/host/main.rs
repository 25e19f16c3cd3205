// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Figures of the iommufd host, each beside something measured in the same run.
//!
//! Runs as root in a kernel built with CONFIG_IOMMUFD_TEST: see `qemu-scripts/bench`. Prints a table in Markdown.

#[path = "../../tests/common/mod.rs"]
mod common;
#[path = "../../tests/host_suite/kernel.rs"]
#[allow(dead_code, reason = "the tests use the rest")]
mod kernel;
#[path = "../../tests/host_suite/program.rs"]
#[allow(dead_code, reason = "the tests use the rest")]
mod program;

mod delay;
mod map;

fn main() {
    println!("| what | ours | beside | ratio | goal | |");
    println!("|---|---|---|---|---|---|");
    map::figure();
    delay::figure();
}

/// Prints a line of the table.
fn line(what: &str, ours: f64, beside: (&str, f64), goal: f64) {
    let ratio = ours / beside.1;
    println!(
        "| {what} | {ours:.1} µs | {} {:.1} µs | {ratio:.2} | at most {goal} | {} |",
        beside.0,
        beside.1,
        if ratio <= goal { "met" } else { "MISSED" }
    );
}

/// The value in the middle.
fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
