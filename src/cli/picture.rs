// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `ctl PATH mappings --svg FILE`: a picture of an address space.
//!
//! An address space is mostly empty, so a scale of addresses would show nothing. Mappings that touch and have the same access
//! are one run; runs stand below each other in order, and what is not mapped between two of them is a line with its size. A
//! box is as wide as the logarithm of its size.

use std::fmt::Write as _;

use serde::Deserialize;

use crate::notation::bytes;

/// A mapping, as the control socket lists it.
#[derive(Clone, Debug, Deserialize)]
pub struct Listed {
    iova: u64,
    last: u64,
    gpa: u64,
    flags: String,
}

/// Mappings without a gap and with the same access.
#[derive(Debug, PartialEq, Eq)]
struct Run {
    first: u64,
    last: u64,
    mappings: usize,
    flags: String,
    /// Where it goes, as long as that is without a gap too.
    gpa: Option<u64>,
}

impl Run {
    /// Its last address but one: that fits if it is all addresses.
    fn size_minus_one(&self) -> u64 {
        self.last - self.first
    }

    /// Takes a mapping in, if it continues the run.
    fn extend(&mut self, next: &Listed) -> bool {
        if self.last.checked_add(1) != Some(next.iova) || self.flags != next.flags {
            return false;
        }
        let offset = next.iova - self.first;
        self.gpa = self
            .gpa
            .filter(|gpa| gpa.checked_add(offset) == Some(next.gpa));
        self.last = next.last;
        self.mappings += 1;
        true
    }
}

fn runs(mappings: &[Listed]) -> Vec<Run> {
    let mut runs: Vec<Run> = Vec::new();
    for mapping in mappings {
        if !runs.last_mut().is_some_and(|run| run.extend(mapping)) {
            runs.push(Run {
                first: mapping.iova,
                last: mapping.last,
                mappings: 1,
                flags: mapping.flags.clone(),
                gpa: Some(mapping.gpa),
            });
        }
    }
    runs
}

/// Runs that are drawn; a picture of more would not be looked at.
const MOST_RUNS: usize = 500;

const WIDTH: u32 = 960;
const ROW: u32 = 24;
/// Where boxes begin, and how wide the smallest and the largest are.
const LEFT: u32 = 170;
const NARROWEST: u32 = 12;
const WIDEST: u32 = 330;
/// Beside the largest box.
const TEXT: u32 = LEFT + WIDEST + 14;

/// Access, and its colour.
const COLOURS: [(&str, &str); 5] = [
    ("rw", "#60a5fa"),
    ("r", "#86efac"),
    ("w", "#fcd34d"),
    ("m", "#f9a8d4"),
    ("", "#d4d4d8"),
];

fn colour(flags: &str) -> &'static str {
    let known = COLOURS.iter().find(|(access, _)| *access == flags);
    // MMIO, whatever the access.
    known.map_or(COLOURS[3].1, |(_, colour)| colour)
}

/// The picture, as SVG. The mappings ascend.
pub fn draw(title: &str, mappings: &[Listed]) -> String {
    let runs = runs(mappings);
    let total: u64 = runs.iter().fold(0, |sum, run| {
        sum.saturating_add(run.size_minus_one()).saturating_add(1)
    });
    let mut body = Body::default();
    body.text(15, "title", &escaped(title));
    body.y += ROW;
    let summary = format!(
        "{}, {} in {}",
        counted(mappings.len(), "mapping"),
        bytes(total),
        counted(runs.len(), "run")
    );
    body.text(15, "", &summary);
    body.legend();
    let mut before: Option<u64> = None;
    for run in runs.iter().take(MOST_RUNS) {
        if let Some(last) = before {
            body.gap(run.first - last - 1);
        }
        body.run(run);
        before = Some(run.last);
    }
    if let Some(rest) = runs.get(MOST_RUNS..).filter(|rest| !rest.is_empty()) {
        body.y += ROW;
        let mappings: usize = rest.iter().map(|run| run.mappings).sum();
        let end = rest.last().map_or(0, |run| run.last);
        let text = format!(
            "and {} more with {}, up to {end:#x}",
            counted(rest.len(), "run"),
            counted(mappings, "mapping")
        );
        body.text(LEFT, "", &text);
    }
    let height = body.y + ROW;
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{height}\" viewBox=\"0 0 {WIDTH} {height}\">\n\
         <style>text {{ font: 12px sans-serif }} .title {{ font-size: 18px; font-weight: bold }} \
         .address {{ font-family: monospace }} .gap {{ fill: #71717a }}</style>\n\
         <title>{}</title>\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n{}</svg>\n",
        escaped(title),
        body.svg
    )
}

/// What is drawn so far, down to a line of text at `y`.
struct Body {
    svg: String,
    y: u32,
}

impl Default for Body {
    fn default() -> Self {
        Self {
            svg: String::new(),
            y: ROW + 4,
        }
    }
}

// Writing to a string cannot fail.
impl Body {
    fn text(&mut self, x: u32, class: &str, text: &str) {
        let y = self.y;
        let _ = writeln!(
            self.svg,
            "<text x=\"{x}\" y=\"{y}\" class=\"{class}\">{text}</text>"
        );
    }

    fn rect(&mut self, x: u32, width: u32, fill: &str) {
        let y = self.y - 13;
        let _ = writeln!(
            self.svg,
            "<rect x=\"{x}\" y=\"{y}\" width=\"{width}\" height=\"17\" fill=\"{fill}\" stroke=\"#3f3f46\"/>"
        );
    }

    fn legend(&mut self) {
        self.y += ROW;
        let names = ["read and write", "read", "write", "MMIO", "no access"];
        for (x, (name, (_, fill))) in (15..).step_by(150).zip(names.iter().zip(COLOURS)) {
            self.rect(x, 17, fill);
            self.text(x + 24, "", name);
        }
        self.y += ROW / 2;
    }

    fn gap(&mut self, size: u64) {
        if size == 0 {
            return;
        }
        self.y += ROW;
        let y = self.y - 4;
        let _ = writeln!(
            self.svg,
            "<path d=\"M{LEFT},{y} h{WIDEST}\" stroke=\"#a1a1aa\" stroke-dasharray=\"3 5\"/>"
        );
        self.text(TEXT, "gap", &format!("{} not mapped", bytes(size)));
    }

    fn run(&mut self, run: &Run) {
        self.y += ROW;
        self.text(15, "address", &format!("{:#x}", run.first));
        // A byte is the narrowest, 2^64 bytes the widest.
        let bits = u64::BITS - run.size_minus_one().leading_zeros();
        let width = NARROWEST + (WIDEST - NARROWEST) * bits / u64::BITS;
        self.rect(LEFT, width, colour(&run.flags));
        let size = match run.size_minus_one().checked_add(1) {
            Some(size) => bytes(size),
            None => "all addresses".to_owned(),
        };
        let target = match run.gpa {
            Some(gpa) => format!("to {gpa:#x}"),
            None => "to several places".to_owned(),
        };
        let text = format!(
            "{size} up to {:#x}, {}, {target}",
            run.last,
            counted(run.mappings, "mapping")
        );
        self.text(TEXT, "", &text);
    }
}

fn counted(count: usize, word: &str) -> String {
    match count {
        1 => format!("1 {word}"),
        _ => format!("{count} {word}s"),
    }
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listed(iova: u64, last: u64, gpa: u64, flags: &str) -> Listed {
        Listed {
            iova,
            last,
            gpa,
            flags: flags.to_owned(),
        }
    }

    #[test]
    fn mappings_that_touch_and_have_the_same_access_are_one_run() {
        let runs = runs(&[
            listed(0x1000, 0x1fff, 0x5000, "rw"),
            listed(0x2000, 0x3fff, 0x6000, "rw"),
            listed(0x4000, 0x4fff, 0x0, "rw"),
            listed(0x5000, 0x5fff, 0x1000, "r"),
            listed(0x8000, 0x8fff, 0x4000, "r"),
        ]);
        let found: Vec<_> = runs
            .iter()
            .map(|run| (run.first, run.last, run.mappings, run.gpa))
            .collect();
        assert_eq!(
            found,
            [
                (0x1000, 0x4fff, 3, None),
                (0x5000, 0x5fff, 1, Some(0x1000)),
                (0x8000, 0x8fff, 1, Some(0x4000)),
            ]
        );
    }

    #[test]
    fn the_picture_has_runs_and_gaps_in_order() {
        let svg = draw(
            "domain <1>",
            &[
                listed(0x1000, 0x1fff, 0x5000, "rw"),
                listed(0x2000, 0x2fff, 0x6000, "r"),
                listed(0x10_0000, 0x1f_ffff, 0, "wm"),
            ],
        );
        let expected = [
            "<title>domain &lt;1&gt;</title>",
            "3 mappings, 1.0 MiB in 3 runs",
            ">0x1000<",
            ">4.0 KiB up to 0x1fff, 1 mapping, to 0x5000<",
            ">0x2000<",
            ">1012.0 KiB not mapped<",
            ">0x100000<",
        ];
        let mut rest = svg.as_str();
        for text in expected {
            rest = rest
                .split_once(text)
                .unwrap_or_else(|| panic!("{text}: {svg}"))
                .1;
        }
        assert_eq!(svg.matches("not mapped").count(), 1);
    }

    #[test]
    fn the_widest_and_the_longest_picture_can_be_drawn() {
        let svg = draw("all", &[listed(0, u64::MAX, 0, "rw")]);
        assert!(svg.contains("all addresses"), "{svg}");
        assert!(svg.contains(&format!("width=\"{WIDEST}\"")), "{svg}");
        assert!(draw("none", &[]).contains("0 mappings, 0 B in 0 runs"));
        let many: Vec<_> = (0..2000u64)
            .map(|n| listed(n << 16, (n << 16) + 0xfff, 0, "rw"))
            .collect();
        let svg = draw("many", &many);
        assert!(svg.contains("and 1500 runs more with 1500 mappings, up to 0x7cf0fff"));
    }
}
