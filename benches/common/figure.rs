// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Figures and how they are printed.

/// A line of the table.
pub struct Figure {
    /// What was measured.
    pub what: String,
    /// The value, with its unit.
    pub ours: String,
    /// What it is held against: its name and value, and the ratio.
    pub beside: Option<(String, f64)>,
    /// What we want; empty where the figure is only shown.
    pub goal: &'static str,
    /// Whether we have it.
    pub met: bool,
}

/// Prints a table in Markdown.
pub fn print(figures: &[Figure]) {
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
            match figure.met {
                _ if figure.goal.is_empty() => "",
                true => "met",
                false => "MISSED",
            }
        );
    }
}

/// The value in the middle.
pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
