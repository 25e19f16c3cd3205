// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Figures of the iommufd host, each beside something measured in the same run.
//!
//! Runs as root in a kernel built with CONFIG_IOMMUFD_TEST: see `qemu-scripts/bench`. Prints tables in Markdown: with
//! the argument `faults` those of page requests, without it the others.

#[path = "../common/bare.rs"]
mod bare;
#[path = "../../tests/common/mod.rs"]
mod common;
#[path = "../common/figure.rs"]
mod figure;
#[path = "../common/hops.rs"]
mod hops;
#[path = "../../tests/host_suite/kernel.rs"]
#[allow(dead_code, reason = "the tests use the rest")]
mod kernel;
#[path = "../common/pin.rs"]
mod pin;
#[path = "../../tests/host_suite/program.rs"]
#[allow(dead_code, reason = "the tests use the rest")]
mod program;
#[path = "../common/stamps.rs"]
mod stamps;

mod cost;
mod delay;
mod faults;
mod lent;
mod map;
mod setup;

use figure::{Figure, median, print};

fn main() {
    if std::env::args().any(|argument| argument == "faults") {
        return faults::measure();
    }
    let mut figures = vec![map::figure(), delay::figure()];
    figures.extend(cost::figures());
    figures.extend(lent::figures());
    print(&figures);
}

/// Microseconds beside others.
fn compare(what: &str, ours: f64, beside: (&str, f64), most: f64, goal: &'static str) -> Figure {
    let ratio = ours / beside.1;
    Figure {
        what: what.into(),
        ours: format!("{ours:.1} µs"),
        beside: Some((format!("{} {:.1} µs", beside.0, beside.1), ratio)),
        goal,
        met: ratio <= most,
    }
}
