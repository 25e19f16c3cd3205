// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Answers on their way to a client. A long one is made part by part, while the client reads: so it needs little memory,
//! and other clients have their turn in between.

use std::io::{self, Write};
use std::os::unix::net::UnixStream;

use serde::Serialize;
use serde_json::{Value, json};

use crate::control::command::{CommandError, ErrorClass};

/// What a command returns, as JSON text.
pub enum Reply {
    /// All of it.
    Whole(Vec<u8>),
    /// Part by part.
    Parts(Box<dyn Parts>),
}

/// A reply that is made while it is sent.
pub trait Parts: Send {
    /// Appends the next part. Whether more follow.
    fn write_next(&mut self, output: &mut Vec<u8>) -> bool;
}

/// What a command came to.
pub type Answer = Result<Reply, CommandError>;

impl Reply {
    /// A value.
    ///
    /// # Errors
    /// The value cannot be JSON. None that commands return is like that.
    pub fn of(value: &(impl Serialize + ?Sized)) -> Answer {
        serde_json::to_vec(value)
            .map(Self::Whole)
            .map_err(|error| CommandError::new(ErrorClass::Internal, error))
    }
}

/// What is not sent yet.
#[derive(Default)]
pub struct Output {
    bytes: Vec<u8>,
    /// Bytes of `bytes` that are sent.
    sent: usize,
    parts: Option<Unfinished>,
}

/// An answer of which more follows.
struct Unfinished {
    parts: Box<dyn Parts>,
    id: Option<Value>,
}

impl Output {
    /// Bytes that are made and not sent.
    pub fn unread(&self) -> usize {
        self.bytes.len() - self.sent
    }

    /// Whether there is anything to send.
    pub fn is_empty(&self) -> bool {
        self.unread() == 0 && self.parts.is_none()
    }

    /// Whether an answer is being made. Until it is complete there is no other.
    pub fn is_unfinished(&self) -> bool {
        self.parts.is_some()
    }

    /// Adds an answer, while none is unfinished.
    pub fn push(&mut self, id: Option<Value>, answer: Answer) {
        self.bytes.drain(..self.sent);
        self.sent = 0;
        match answer {
            Ok(reply) => {
                self.bytes.extend_from_slice(b"{\"return\":");
                match reply {
                    Reply::Whole(value) => {
                        self.bytes.extend(value);
                        self.end_line(id.as_ref());
                    }
                    Reply::Parts(parts) => self.parts = Some(Unfinished { parts, id }),
                }
            }
            Err(error) => {
                self.bytes.extend_from_slice(b"{\"error\":");
                self.append(&json!(error));
                self.end_line(id.as_ref());
            }
        }
    }

    fn end_line(&mut self, id: Option<&Value>) {
        if let Some(id) = id {
            self.bytes.extend_from_slice(b",\"id\":");
            self.append(id);
        }
        self.bytes.extend_from_slice(b"}\n");
    }

    fn append(&mut self, value: &Value) {
        // Writing to memory cannot fail, and neither can a value that was parsed, or is made of strings.
        let _ = serde_json::to_writer(&mut self.bytes, value);
    }

    /// Sends what the client takes, and at most one part that is not made yet.
    ///
    /// # Errors
    /// The connection is broken.
    pub fn send(&mut self, mut stream: &UnixStream) -> io::Result<()> {
        if !self.write(&mut stream)? {
            return Ok(());
        }
        if let Some(mut unfinished) = self.parts.take() {
            if unfinished.parts.write_next(&mut self.bytes) {
                self.parts = Some(unfinished);
            } else {
                self.end_line(unfinished.id.as_ref());
            }
            self.write(&mut stream)?;
        }
        Ok(())
    }

    /// Whether all that was made is sent.
    fn write(&mut self, stream: &mut &UnixStream) -> io::Result<bool> {
        while self.sent < self.bytes.len() {
            match stream.write(&self.bytes[self.sent..]) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(count) => self.sent += count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        self.bytes = Vec::new();
        self.sent = 0;
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    const PART: usize = 64 << 10;

    /// A string of many parts. Counts those that were made.
    struct Long {
        left: usize,
        made: Arc<AtomicUsize>,
    }

    impl Parts for Long {
        fn write_next(&mut self, output: &mut Vec<u8>) -> bool {
            self.made.fetch_add(1, Ordering::Relaxed);
            output.extend_from_slice(&[b' '; PART]);
            self.left -= 1;
            if self.left == 0 {
                output.extend_from_slice(b"true");
            }
            self.left > 0
        }
    }

    #[test]
    fn a_long_answer_is_made_while_the_client_reads() {
        let (ours, mut theirs) = UnixStream::pair().expect("pair");
        ours.set_nonblocking(true).expect("nonblocking");
        let made = Arc::new(AtomicUsize::new(0));
        let mut output = Output::default();
        let parts = Long {
            left: 1000,
            made: Arc::clone(&made),
        };
        output.push(Some(json!(7)), Ok(Reply::Parts(Box::new(parts))));
        for _ in 0..1000 {
            output.send(&ours).expect("send");
            assert!(output.unread() <= PART);
        }
        assert!(
            made.load(Ordering::Relaxed) < 100,
            "the client has read nothing"
        );
        let reader = std::thread::spawn(move || {
            let mut text = String::new();
            theirs.read_to_string(&mut text).expect("read");
            text
        });
        while !output.is_empty() {
            output.send(&ours).expect("send");
        }
        drop(ours);
        let text = reader.join().expect("reader");
        assert_eq!(
            text.len(),
            1000 * PART + "{\"return\":true,\"id\":7}\n".len()
        );
        assert!(text.ends_with(" true,\"id\":7}\n"));
    }
}
