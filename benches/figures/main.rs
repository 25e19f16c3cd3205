// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Figures of the whole back-end over the software host, each beside something measured in the same run.
//!
//! `cargo bench --bench figures [NAME...]` with names of `memory`, `process`, `wake`, `batch`; all of them without.
//! Prints a table in Markdown.

#[path = "../../tests/common/mod.rs"]
mod common;

mod batch;
mod memory;
mod process;
mod wake;

/// A line of the table.
pub struct Figure {
    /// What was measured.
    pub what: String,
    /// The value, with its unit.
    pub ours: String,
    /// What it is held against: its name and value, and the ratio.
    pub beside: Option<(String, f64)>,
    /// What we want.
    pub goal: &'static str,
    /// Whether we have it.
    pub met: bool,
}

fn print(figures: &[Figure]) {
    println!("| what | ours | beside | ratio | goal | |");
    println!("|---|---|---|---|---|---|");
    for figure in figures {
        let (beside, ratio) = match &figure.beside {
            Some((beside, ratio)) => (beside.as_str(), format!("{ratio:.2}")),
            None => ("", String::new()),
        };
        println!(
            "| {} | {} | {beside} | {ratio} | {} | {} |",
            figure.what,
            figure.ours,
            figure.goal,
            if figure.met { "met" } else { "MISSED" }
        );
    }
}

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
    let parts: [(&str, Part); 4] = [
        ("memory", memory::figures),
        ("process", process::figures),
        ("wake", wake::figures),
        ("batch", batch::figures),
    ];
    for (name, figures) in parts {
        if names.is_empty() || names.iter().any(|wanted| wanted == name) {
            eprintln!("measuring: {name}");
            print(&figures());
            println!();
        }
    }
}

/// The value in the middle.
pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
