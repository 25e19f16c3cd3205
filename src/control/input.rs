// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a client sends, cut into commands: an object ends when its braces close. A line that is no object ends with the
//! line, and so does an object that is broken off: so a client that is confused is understood again from the next line on.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;

use crate::control::command::{CommandError, Line, MAX_LINE, parse};
use crate::os::message;

/// Bytes read at a time: one connection's share before the next one's turn.
const READ_SIZE: usize = 64 << 10;

/// What has come and is not carried out yet.
#[derive(Default)]
pub struct Input {
    bytes: Vec<u8>,
    /// Where the next command begins.
    start: usize,
    /// Bytes of `bytes` that the scanner has seen.
    scanned: usize,
    scanner: Scanner,
    /// The command is too long, and was answered so: the rest of it is skipped.
    skipping: bool,
    attached: Vec<Attached>,
    ended: bool,
}

/// The descriptors that came with a command.
#[derive(Debug, Default)]
pub struct Descriptors {
    /// The first of them.
    pub first: Option<OwnedFd>,
    /// How many there were. The others are closed.
    pub count: usize,
}

/// Descriptors, and the byte of `Input::bytes` whose command they came with.
struct Attached {
    at: usize,
    descriptors: Descriptors,
}

impl Input {
    /// Reads once.
    ///
    /// # Errors
    /// The connection is broken. It is none that there is nothing to read.
    pub fn receive(&mut self, stream: &UnixStream) -> io::Result<()> {
        let mut buffer = [0; READ_SIZE];
        let (count, descriptors) = match message::receive(stream, &mut buffer) {
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
                ) =>
            {
                return Ok(());
            }
            other => other?,
        };
        if count == 0 {
            self.ended = true;
            // The last line may lack its end.
            self.bytes.push(b'\n');
            return Ok(());
        }
        let received = &buffer[..count];
        if !descriptors.is_empty() {
            // They belong to the last command that has a byte here, and the end of its line is none of it.
            let is_text = |byte: &u8| !byte.is_ascii_whitespace();
            let last = received.iter().rposition(is_text).unwrap_or(count - 1);
            self.attach(self.bytes.len() + last, descriptors);
        }
        self.bytes.extend_from_slice(received);
        Ok(())
    }

    /// Keeps the first descriptor and closes the others, so that what an unfinished command holds is bounded.
    fn attach(&mut self, at: usize, descriptors: Vec<OwnedFd>) {
        let count = descriptors.len();
        let first = descriptors.into_iter().next();
        self.attached.push(Attached {
            at,
            descriptors: Descriptors { first, count },
        });
    }

    /// Whether the client sends nothing more.
    pub fn has_ended(&self) -> bool {
        self.ended
    }

    /// The next command that is complete.
    pub fn next_line(&mut self) -> Option<(Line, Descriptors)> {
        while let Some(end) = self.find_end() {
            let start = std::mem::replace(&mut self.start, end);
            let text = &self.bytes[start..end];
            // Blank lines are nothing, as in QMP.
            if text.iter().all(u8::is_ascii_whitespace) && !self.skipping {
                continue;
            }
            let line = match text.trim_ascii() {
                text if text.len() <= MAX_LINE => parse(text),
                _ => too_long(),
            };
            let descriptors = self.take_attached(end);
            if !std::mem::take(&mut self.skipping) {
                return Some((line, descriptors));
            }
        }
        self.forget_done();
        let rest = self.bytes.len();
        if rest > MAX_LINE || self.skipping {
            self.bytes = Vec::new();
            self.scanned = 0;
            self.attached.clear();
            if !std::mem::replace(&mut self.skipping, true) {
                return Some((too_long(), Descriptors::default()));
            }
        }
        None
    }

    /// Behind the last byte of the next command.
    fn find_end(&mut self) -> Option<usize> {
        let ends = |&byte: &u8| self.scanner.ends_with(byte);
        match self.bytes[self.scanned..].iter().position(ends) {
            Some(length) => {
                self.scanned += length + 1;
                Some(self.scanned)
            }
            None => {
                self.scanned = self.bytes.len();
                None
            }
        }
    }

    /// What came with bytes before `end`.
    fn take_attached(&mut self, end: usize) -> Descriptors {
        let mut taken = Descriptors::default();
        for attached in self.attached.extract_if(.., |attached| attached.at < end) {
            taken.join(attached.descriptors);
        }
        taken
    }

    /// Drops what is carried out.
    fn forget_done(&mut self) {
        let done = std::mem::take(&mut self.start);
        self.bytes.drain(..done);
        self.scanned -= done;
        // All of them came with the command that is not complete.
        let mut rest = Descriptors::default();
        for attached in self.attached.drain(..) {
            rest.join(attached.descriptors);
        }
        if rest.count > 0 {
            self.attached.push(Attached {
                at: 0,
                descriptors: rest,
            });
        }
        if self.bytes.is_empty() {
            // An idle connection holds no memory.
            self.bytes = Vec::new();
        }
    }
}

impl Descriptors {
    fn join(&mut self, other: Self) {
        self.count += other.count;
        self.first = self.first.take().or(other.first);
    }
}

fn too_long() -> Line {
    let error = CommandError::invalid(format!("a command is at most {MAX_LINE} bytes"));
    Line {
        id: None,
        command: Err(error),
    }
}

/// Finds the end of a command, byte by byte.
#[derive(Default)]
struct Scanner {
    inside: Inside,
}

#[derive(Clone, Copy, Default)]
enum Inside {
    /// Nothing but white space so far.
    #[default]
    Nothing,
    /// A line that is no object.
    Line,
    /// So many objects that are open; `string` if inside a string.
    Object { open: usize, string: Option<Text> },
}

#[derive(Clone, Copy)]
enum Text {
    Plain,
    /// Behind a backslash.
    Escape,
}

impl Scanner {
    /// Whether the command ends with this byte.
    fn ends_with(&mut self, byte: u8) -> bool {
        // JSON has a line feed only between tokens.
        let next = match (byte, self.inside) {
            (b'\n', _) => None,
            (b'{', Inside::Nothing) => Some(Inside::object(1)),
            (byte, Inside::Nothing) if byte.is_ascii_whitespace() => Some(Inside::Nothing),
            (_, Inside::Nothing | Inside::Line) => Some(Inside::Line),
            (byte, Inside::Object { open, string }) => match (byte, string) {
                (b'"', None) => Some(Inside::text(open, Text::Plain)),
                (b'{', None) => Some(Inside::object(open + 1)),
                (b'}', None) if open == 1 => None,
                (b'}', None) => Some(Inside::object(open - 1)),
                (_, None) => Some(Inside::object(open)),
                (b'"', Some(Text::Plain)) => Some(Inside::object(open)),
                (b'\\', Some(Text::Plain)) => Some(Inside::text(open, Text::Escape)),
                (_, Some(_)) => Some(Inside::text(open, Text::Plain)),
            },
        };
        self.inside = next.unwrap_or_default();
        next.is_none()
    }
}

impl Inside {
    fn object(open: usize) -> Self {
        Self::Object { open, string: None }
    }

    fn text(open: usize, text: Text) -> Self {
        Self::Object {
            open,
            string: Some(text),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Where the commands of a text end.
    fn ends(text: &str) -> Vec<usize> {
        let mut scanner = Scanner::default();
        let bytes = text.bytes().enumerate();
        bytes
            .filter_map(|(at, byte)| scanner.ends_with(byte).then_some(at + 1))
            .collect()
    }

    #[test]
    fn an_object_ends_when_its_braces_close() {
        for text in [
            "{}",
            r#"{"a":{"b":{}}}"#,
            r#"{"a":"}"}"#,
            r#"{"a":"\"}"}"#,
            r#"{"a":"\\"}"#,
            r#"{"a":"\\\"}"}"#,
            r#"  {"a":[{},{}]}"#,
        ] {
            assert_eq!(ends(text), [text.len()], "{text}");
            assert_eq!(ends(&text.repeat(2)), [text.len(), 2 * text.len()]);
        }
    }

    #[test]
    fn anything_else_ends_with_its_line() {
        assert_eq!(ends("a{}\n"), [4]);
        assert_eq!(ends("[{}]\n{}"), [5, 7]);
        assert_eq!(ends("{\"a\":\n{}\n"), [6, 8, 9]);
        assert_eq!(ends("{\"\n\n"), [3, 4]);
        assert!(ends("{").is_empty());
    }
}
