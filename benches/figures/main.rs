// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Figures of the whole back-end over the software host, each beside something measured in the same run.
//!
//! `cargo bench --bench figures [NAME...]` with names of `memory`, `table`, `process`, `wake`, `batch`, `engines`,
//! `function`, `tables`, `faults`; all of them without. Prints tables in Markdown.

#[path = "../common/bare.rs"]
mod bare;
#[path = "../../tests/common/mod.rs"]
mod common;
#[path = "../common/cpu_time.rs"]
mod cpu_time;
#[path = "../common/figure.rs"]
mod figure;
#[path = "../common/hops.rs"]
mod hops;
#[path = "../common/pin.rs"]
mod pin;
#[path = "../common/stamps.rs"]
mod stamps;
#[path = "../common/tree_table.rs"]
mod tree_table;

mod batch;
mod engines;
mod faults;
mod function;
mod memory;
mod process;
mod table;
mod tables;
mod wake;

use figure::{Figure, median, print};

fn main() {
    // Cargo adds options of its own.
    let names: Vec<String> = std::env::args()
        .skip(1)
        .filter(|argument| !argument.starts_with('-'))
        .collect();
    if let Some(part) = std::env::var_os(memory::CHILD) {
        return memory::child(&part.to_string_lossy());
    }
    type Part = fn() -> Vec<Figure>;
    let parts: [(&str, Part); 8] = [
        ("memory", memory::figures),
        ("table", table::figures),
        ("process", process::figures),
        ("wake", wake::figures),
        ("batch", batch::figures),
        ("engines", engines::figures),
        ("function", function::figures),
        ("tables", tables::figures),
    ];
    for (name, figures) in parts {
        if names.is_empty() || names.iter().any(|wanted| wanted == name) {
            eprintln!("measuring: {name}");
            print(&figures());
            println!();
        }
    }
    if names.is_empty() || names.iter().any(|wanted| wanted == "faults") {
        eprintln!("measuring: faults");
        faults::measure();
    }
}
