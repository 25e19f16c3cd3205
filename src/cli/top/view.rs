// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! How a sample looks: a few lines of numbers, the endpoints, the domains with most mappings.

use std::cmp::Reverse;

use ratatui::Frame;
use ratatui::buffer::Buffer;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Style, Stylize};
use ratatui::text::Line;
use ratatui::widgets::{Paragraph, Row, Table, Widget};

use crate::cli::top::sample::Sample;
use crate::notation::{bytes, pci_name};

/// What is shown: the newest sample, and the one before it.
pub struct View<'a> {
    /// Where it comes from.
    pub source: &'a str,
    /// The one before.
    pub before: &'a Sample,
    /// The newest.
    pub now: &'a Sample,
}

/// Lines of numbers above the tables, one of them empty.
const NUMBERS: u16 = 5;
/// Rows of a table besides its lines: its head, and an empty one.
const FRAME: u16 = 2;

impl View<'_> {
    /// Rows that all of it takes.
    pub fn height(&self) -> u16 {
        let rows = |count: usize| u16::try_from(count).unwrap_or(u16::MAX);
        let status = &self.now.status;
        let tables = rows(status.endpoints.len()).saturating_add(rows(status.domains.len()));
        tables.saturating_add(NUMBERS + 2 * FRAME)
    }

    /// Draws it on the whole terminal.
    pub fn draw(&self, frame: &mut Frame<'_>) {
        let area = frame.area();
        frame.render_widget(self, area);
    }

    fn rate(&self, name: &str) -> String {
        format!("{:.0}", self.now.rate(self.before, name))
    }

    fn numbers(&self) -> Vec<Line<'_>> {
        let now = self.now;
        let front_end = match now.status.connected {
            true => "front-end connected",
            false => "no front-end",
        };
        let memory: u64 = now.status.memory.iter().map(|region| region.length).sum();
        let unreachable = now.status.memory.iter().filter(|r| r.error.is_some());
        let unreachable = match unreachable.count() {
            0 => String::new(),
            count => format!(" ({count} of its regions not reached)"),
        };
        let mappings: u64 = now.status.domains.iter().map(|d| d.mappings).sum();
        let waiting: u64 = now.waiting.iter().map(|w| w.groups).sum();
        let ages = now.waiting.iter().map(|w| w.oldest_seconds);
        let oldest = ages.fold(0.0, f64::max);
        let errors = Line::from(format!(
            "host errors: {}   faults reported: {}, dropped: {}",
            now.counter("host_errors"),
            now.counter("fault_reports"),
            now.counter("fault_reports_dropped")
        ));
        vec![
            Line::from(format!(
                "{}: {front_end}, {} of memory{unreachable}, {} endpoints, {} domains, {mappings} mappings",
                self.source,
                bytes(memory),
                now.status.endpoints.len(),
                now.status.domains.len(),
            ))
            .bold(),
            Line::from(format!(
                "requests/s: {} (failed {})   MAP {}   UNMAP {}   INVALIDATE {}",
                self.rate("requests"),
                self.rate("requests_failed"),
                self.rate("map"),
                self.rate("unmap"),
                self.rate("invalidate")
            )),
            Line::from(format!(
                "page requests/s: {} (answered {})   waiting: {waiting}, oldest {oldest:.2} s   timed out: {}",
                self.rate("page_request_groups"),
                self.rate("page_response"),
                now.counter("page_request_timeouts")
            )),
            match now.counter("host_errors") {
                0 => errors,
                _ => errors.red(),
            },
        ]
    }

    fn endpoints(&self) -> Table<'_> {
        let head = ["ENDPOINT", "STATE", "DOMAIN", "PASIDS", "WAITING", "OLDEST"];
        let rows = self.now.status.endpoints.iter().map(|endpoint| {
            let (groups, oldest) = self.now.waiting_of(endpoint.id);
            let domain = endpoint.domain.map(|domain| domain.to_string());
            Row::new([
                pci_name(endpoint.id),
                endpoint.state.clone(),
                domain.unwrap_or_else(|| "-".to_owned()),
                endpoint.pasids.len().to_string(),
                groups.to_string(),
                format!("{oldest:.2} s"),
            ])
        });
        let widths = [14, 10, 10, 8, 8, 10].map(Constraint::Length);
        Table::new(rows, widths).header(Row::new(head).style(Style::new().reversed()))
    }

    fn domains(&self) -> Table<'_> {
        let mut domains: Vec<_> = self.now.status.domains.iter().collect();
        domains.sort_by_key(|domain| (Reverse(domain.mappings), domain.id));
        let head = ["DOMAIN", "KIND", "MAPPINGS", "MAPPED", "ENDPOINTS"];
        let rows = domains.into_iter().map(|domain| {
            let endpoints: Vec<_> = domain.endpoints.iter().map(|&id| pci_name(id)).collect();
            Row::new([
                domain.id.to_string(),
                domain.kind.clone(),
                domain.mappings.to_string(),
                bytes(domain.bytes),
                endpoints.join(" "),
            ])
        });
        let widths = [
            Constraint::Length(14),
            Constraint::Length(10),
            Constraint::Length(10),
            Constraint::Length(12),
            Constraint::Fill(1),
        ];
        Table::new(rows, widths).header(Row::new(head).style(Style::new().reversed()))
    }
}

impl Widget for &View<'_> {
    fn render(self, area: Rect, buffer: &mut Buffer) {
        let count = self.now.status.endpoints.len();
        let endpoints = u16::try_from(count).unwrap_or(u16::MAX);
        let [numbers, first, second] = Layout::vertical([
            Constraint::Length(NUMBERS),
            // The domains get at least a third of what is left.
            Constraint::Max(endpoints.saturating_add(FRAME).min(area.height * 2 / 3)),
            Constraint::Fill(1),
        ])
        .areas(area);
        Paragraph::new(self.numbers()).render(numbers, buffer);
        Widget::render(self.endpoints(), first, buffer);
        Widget::render(self.domains(), second, buffer);
    }
}

/// A buffer as text, without colours.
pub fn plain(buffer: &Buffer) -> String {
    let mut text = String::new();
    for y in 0..buffer.area.height {
        let row = (0..buffer.area.width).filter_map(|x| buffer.cell((x, y)));
        let row: String = row.map(|cell| cell.symbol()).collect();
        text.push_str(row.trim_end());
        text.push('\n');
    }
    text.trim_end().to_owned() + "\n"
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;
    use crate::cli::top::sample::busy;

    fn drawn(width: u16, height: Option<u16>) -> String {
        let start = Instant::now();
        let (before, now) = (busy(start, 1), busy(start, 2));
        let view = View {
            source: "/run/iommu.ctl",
            before: &before,
            now: &now,
        };
        let area = Rect::new(0, 0, width, height.unwrap_or(view.height()));
        let mut buffer = Buffer::empty(area);
        view.render(area, &mut buffer);
        plain(&buffer)
    }

    #[test]
    fn a_busy_guest_looks_like_this() {
        let expected = "\
/run/iommu.ctl: front-end connected, 1.0 GiB of memory (1 of its regions not reached), 2 endpoints, 2 domains, 703 mappings
requests/s: 1000 (failed 0)   MAP 600   UNMAP 0   INVALIDATE 0
page requests/s: 0 (answered 0)   waiting: 12, oldest 0.25 s   timed out: 0
host errors: 2   faults reported: 0, dropped: 0

ENDPOINT       STATE      DOMAIN     PASIDS   WAITING  OLDEST
0000:00:05.0   attached   1          1        12       0.25 s
0000:00:06.0   bypass     -          0        0        0.00 s

DOMAIN         KIND       MAPPINGS   MAPPED       ENDPOINTS
2              paging     700        2.7 MiB      0000:00:05.0
1              paging     3          12.0 KiB     0000:00:05.0
";
        assert_eq!(drawn(130, None), expected);
    }

    #[test]
    fn any_terminal_is_large_enough() {
        for (width, height) in [(0, 0), (1, 1), (20, 3), (80, 8), (500, 200)] {
            drawn(width, Some(height));
        }
    }
}
