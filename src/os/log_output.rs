// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Standard error as the place for the log. A reader that is slow or gone, or a file that is full, holds nothing up and ends
//! nothing.
#![forbid(unsafe_code)]

use std::io::{self, Write};
use std::os::fd::AsFd;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

/// How long a line waits for a reader that is slow. Once one has waited in vain the next do not wait, until there is room
/// again.
const PATIENCE: Timespec = Timespec {
    tv_sec: 1,
    tv_nsec: 0,
};
/// Writes of no more are not blocked by a pipe that has room (PIPE_BUF).
const PIECE: usize = 4096;

/// Writes lines to a descriptor, standard error unless it is a test. Lines that cannot be written are counted, and told of
/// when one can be written again.
pub struct LogOutput<F = io::Stderr> {
    to: F,
    lost: u64,
    stalled: bool,
}

impl Default for LogOutput {
    fn default() -> Self {
        Self::new(io::stderr())
    }
}

impl<F: AsFd> LogOutput<F> {
    fn new(to: F) -> Self {
        Self {
            to,
            lost: 0,
            stalled: false,
        }
    }

    /// Whether all of it is written.
    fn put(&mut self, text: &[u8]) -> bool {
        let mut rest = text;
        while !rest.is_empty() {
            if !self.has_room() {
                return false;
            }
            let piece = &rest[..rest.len().min(PIECE)];
            match rustix::io::write(&self.to, piece) {
                Ok(0) => return false,
                Ok(count) => rest = &rest[count..],
                Err(Errno::INTR) => {}
                Err(_) => return false,
            }
        }
        true
    }

    /// Waits for room. An error is found by the write.
    fn has_room(&mut self) -> bool {
        let patience = match self.stalled {
            true => Timespec::default(),
            false => PATIENCE,
        };
        let mut waiting = [PollFd::new(&self.to, PollFlags::OUT)];
        let room = loop {
            match poll(&mut waiting, Some(&patience)) {
                Err(Errno::INTR) => {}
                other => break other != Ok(0),
            }
        };
        self.stalled = !room;
        room
    }
}

impl<F: AsFd> Write for LogOutput<F> {
    /// Takes a line, also if it cannot be written.
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        if self.lost > 0 {
            let note = format!(
                "(lines of the log that could not be written: {})\n",
                self.lost
            );
            if self.put(note.as_bytes()) {
                self.lost = 0;
            }
        }
        if self.lost > 0 || !self.put(line) {
            self.lost += 1;
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::{BufRead, BufReader};

    use super::*;

    #[test]
    fn lines_that_nobody_reads_are_counted_and_hold_nothing_up() {
        let (reader, writer) = io::pipe().expect("pipe");
        let mut output = LogOutput::new(writer);
        let line = [b'x'; 999];
        for _ in 0..1000 {
            output.write_all(&line).expect("taken");
            output.write_all(b"\n").expect("taken");
        }
        let lost = output.lost;
        assert!(lost > 0);
        let mut lines = BufReader::new(reader).lines();
        let mut next = || lines.next().expect("a line").expect("read");
        while output.lost > 0 {
            output.write_all(b"again\n").expect("taken");
            next();
        }
        output.write_all(b"last\n").expect("taken");
        let mut notes = 0;
        loop {
            let line = next();
            notes += usize::from(line.contains("could not be written"));
            if line == "last" {
                break;
            }
        }
        assert_eq!(notes, 1);
    }

    #[test]
    fn errors_of_the_file_end_nothing() {
        let full = File::options().write(true).open("/dev/full").expect("open");
        let mut output = LogOutput::new(full);
        for _ in 0..3 {
            output.write_all(b"line\n").expect("taken");
        }
        assert_eq!(output.lost, 3);
        let (reader, writer) = io::pipe().expect("pipe");
        drop(reader);
        let mut output = LogOutput::new(writer);
        output.write_all(b"line\n").expect("taken");
        assert_eq!(output.lost, 1);
    }
}
