// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `vhost-device-iommu ctl PATH top`: what happens, now.
//!
//! `sample` (two looks at the answers of the control socket), `view` (how they look). On a terminal it is drawn again and
//! again; elsewhere once, as text.

mod sample;
mod view;

use std::io::{self, BufRead, BufReader, IsTerminal, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use ratatui::buffer::Buffer;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEventKind, KeyModifiers};
use ratatui::layout::Rect;
use ratatui::widgets::Widget;
use serde_json::{Value, json};

use crate::cli::ctl::CtlError;
use sample::Sample;
use view::View;

/// How often to look.
const INTERVAL: Duration = Duration::from_secs(1);
/// Columns of the text where there is no terminal.
const COLUMNS: u16 = 130;

/// Shows what happens until the user ends it, or once where standard output is no terminal.
///
/// # Errors
/// The process there does not answer, or what it answers is not understood, or the terminal cannot be written to.
pub fn run(path: &Path) -> Result<(), CtlError> {
    let mut client = Client::connect(path)?;
    let mut before = client.sample()?;
    let source = path.display().to_string();
    if !io::stdout().is_terminal() {
        thread::sleep(INTERVAL);
        let now = client.sample()?;
        let view = View {
            source: &source,
            before: &before,
            now: &now,
        };
        return print_once(&view).map_err(CtlError::Print);
    }
    let mut terminal = ratatui::try_init().map_err(CtlError::Print)?;
    let result = (|| {
        let mut now = before.clone();
        loop {
            let view = View {
                source: &source,
                before: &before,
                now: &now,
            };
            let drawn = terminal.draw(|frame| view.draw(frame));
            drawn.map_err(CtlError::Print)?;
            if is_ended(Instant::now() + INTERVAL).map_err(CtlError::Print)? {
                return Ok(());
            }
            before = std::mem::replace(&mut now, client.sample()?);
        }
    })();
    // In any case: the terminal is the user's again, and an error is printed there.
    ratatui::restore();
    result
}

fn print_once(view: &View<'_>) -> io::Result<()> {
    let area = Rect::new(0, 0, COLUMNS, view.height());
    let mut buffer = Buffer::empty(area);
    view.render(area, &mut buffer);
    let mut output = io::stdout().lock();
    output.write_all(view::plain(&buffer).as_bytes())?;
    output.flush()
}

/// Waits until the deadline, or for a key that ends it: q, Escape, Ctrl-C. Whether there was one. A terminal that has got
/// another size ends the wait too.
fn is_ended(deadline: Instant) -> io::Result<bool> {
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if !event::poll(left)? {
            return Ok(false);
        }
        match event::read()? {
            Event::Key(key) if key.kind == KeyEventKind::Press => match key.code {
                KeyCode::Char('q') | KeyCode::Esc => return Ok(true),
                KeyCode::Char('c') if key.modifiers.contains(KeyModifiers::CONTROL) => {
                    return Ok(true);
                }
                _ => {}
            },
            Event::Resize(..) => return Ok(false),
            _ => {}
        }
    }
}

/// A connection to the control socket.
struct Client<'a> {
    path: &'a Path,
    stream: BufReader<UnixStream>,
}

impl<'a> Client<'a> {
    fn connect(path: &'a Path) -> Result<Self, CtlError> {
        let stream =
            UnixStream::connect(path).map_err(|error| CtlError::Connect(path.to_owned(), error))?;
        let stream = BufReader::new(stream);
        Ok(Self { path, stream })
    }

    fn sample(&mut self) -> Result<Sample, CtlError> {
        let status = self.call("status")?;
        let counters = self.call("counters")?;
        let waiting = self.call("waiting")?;
        Sample::new(Instant::now(), status, counters, waiting)
            .map_err(|error| CtlError::Answer(error.to_string()))
    }

    fn call(&mut self, name: &str) -> Result<Value, CtlError> {
        let broken = |error| CtlError::Broken(self.path.to_owned(), error);
        let command = json!({"execute": name});
        writeln!(self.stream.get_mut(), "{command}").map_err(broken)?;
        let mut line = String::new();
        if self.stream.read_line(&mut line).map_err(broken)? == 0 {
            let end = io::Error::new(io::ErrorKind::UnexpectedEof, "the process has ended");
            return Err(broken(end));
        }
        let answer: Value =
            serde_json::from_str(&line).map_err(|error| CtlError::Answer(error.to_string()))?;
        crate::cli::ctl::returned(answer)
    }
}
