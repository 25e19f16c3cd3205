// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! One connection: lines in, answers out, and the commands that wait.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Write};
use std::os::unix::net::UnixStream;
use std::task::{Poll, Waker};

use serde_json::{Value, json};
use vmm_sys_util::sock_ctrl_msg::ScmSocket;

use crate::control::command::{CommandError, ErrorClass, Line, MAX_LINE, parse};
use crate::control::execute::{Answer, Context, Running};

/// Answers that a client may leave unread, in bytes. One that leaves more is disconnected.
const MAX_UNREAD: usize = 1 << 20;
/// Commands of a connection that wait at a time.
pub const MAX_WAITING: usize = 256;
/// Bytes that they may hold on to in all.
const MAX_WAITING_BYTES: usize = 16 << 20;
/// Bytes read at a time: one connection's share before the next one's turn.
const READ_SIZE: usize = 64 << 10;

/// Makes the waker of a command from its key.
pub type MakeWaker<'a> = &'a dyn Fn(u64) -> Waker;

/// A connection.
pub struct Connection {
    stream: UnixStream,
    /// What has come of lines that are not complete.
    input: Vec<u8>,
    /// Bytes of `input` in which no end of a line is.
    scanned: usize,
    /// The line is too long: the rest of it is skipped.
    skipping: bool,
    /// The descriptor that came last, and where in `input`.
    file: Option<(usize, File)>,
    /// The client sends nothing more.
    ended: bool,
    output: Vec<u8>,
    /// Bytes of `output` that are sent.
    sent: usize,
    waiting: BTreeMap<u64, Waiting>,
    waiting_bytes: usize,
    next_key: u64,
}

struct Waiting {
    id: Option<Value>,
    cost: usize,
    running: Running,
}

/// The connection is over.
#[derive(Debug)]
pub struct Closed;

impl Connection {
    /// A connection over a stream that does not block.
    pub fn new(stream: UnixStream) -> Self {
        Self {
            stream,
            input: Vec::new(),
            scanned: 0,
            skipping: false,
            file: None,
            ended: false,
            output: Vec::new(),
            sent: 0,
            waiting: BTreeMap::new(),
            waiting_bytes: 0,
            next_key: 0,
        }
    }

    /// The stream.
    pub fn stream(&self) -> &UnixStream {
        &self.stream
    }

    /// Whether the client may send more.
    pub fn wants_input(&self) -> bool {
        !self.ended
    }

    /// Whether answers wait for room.
    pub fn wants_output(&self) -> bool {
        self.sent < self.output.len()
    }

    /// Reads once, carries out the lines that are complete, and sends what it can.
    pub fn receive(&mut self, context: &Context, wakers: MakeWaker<'_>) -> Result<(), Closed> {
        let mut buffer = [0; READ_SIZE];
        match self.stream.recv_with_fd(&mut buffer) {
            Ok((0, _)) => {
                self.ended = true;
                // A last line may lack its end.
                if !self.input.is_empty() && !self.skipping {
                    self.input.push(b'\n');
                }
            }
            Ok((count, file)) => {
                self.input.extend_from_slice(&buffer[..count]);
                // The kernel ends a read behind the bytes that a descriptor came with: it belongs to the
                // line of the last byte.
                if let Some(file) = file {
                    self.file = Some((self.input.len() - 1, file));
                }
            }
            Err(error) => match error.errno() {
                libc::EAGAIN | libc::EINTR => return Ok(()),
                // Several descriptors at once. They are closed, and the bytes are lost with them.
                libc::ENOBUFS => {
                    let error = CommandError::invalid("one descriptor at a time");
                    self.answer(None, Err(error))?;
                    return self.send();
                }
                _ => return Err(Closed),
            },
        }
        self.lines(context, wakers)?;
        self.send()
    }

    /// Goes on with a command that waited.
    pub fn resume(&mut self, key: u64, waker: &Waker) -> Result<(), Closed> {
        // A command that was woken twice may be over.
        let Some(waiting) = self.waiting.get_mut(&key) else {
            return Ok(());
        };
        let mut context = std::task::Context::from_waker(waker);
        if let Poll::Ready(answer) = waiting.running.as_mut().poll(&mut context) {
            if let Some(waiting) = self.waiting.remove(&key) {
                self.waiting_bytes -= waiting.cost;
                self.answer(waiting.id, answer)?;
            }
            return self.send();
        }
        Ok(())
    }

    /// Sends what the client takes.
    pub fn send(&mut self) -> Result<(), Closed> {
        while self.sent < self.output.len() {
            match (&self.stream).write(&self.output[self.sent..]) {
                Ok(0) => return Err(Closed),
                Ok(count) => self.sent += count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return Err(Closed),
            }
        }
        self.output = Vec::new();
        self.sent = 0;
        if self.ended && self.waiting.is_empty() {
            return Err(Closed);
        }
        Ok(())
    }

    fn lines(&mut self, context: &Context, wakers: MakeWaker<'_>) -> Result<(), Closed> {
        let mut start = 0;
        while let Some(length) = self.input[self.scanned.max(start)..]
            .iter()
            .position(|&byte| byte == b'\n')
        {
            let end = self.scanned.max(start) + length;
            let file = match &self.file {
                Some((at, _)) if *at <= end => self.file.take().map(|(_, file)| file),
                _ => None,
            };
            if self.skipping {
                self.skipping = false;
            } else {
                let line = &self.input[start..end];
                // Blank lines are nothing, as in QMP.
                if !line.iter().all(u8::is_ascii_whitespace) {
                    let line = match line.len() <= MAX_LINE {
                        true => parse(line),
                        false => too_long(),
                    };
                    self.execute(line, file, context, wakers)?;
                }
            }
            start = end + 1;
        }
        self.input.drain(..start);
        if let Some((at, _)) = &mut self.file {
            *at = at.saturating_sub(start);
        }
        if self.input.len() > MAX_LINE || self.skipping {
            if !self.skipping {
                self.skipping = true;
                let Line { id, command } = too_long();
                self.answer(id, command.map(|_| Value::Null))?;
            }
            self.input = Vec::new();
            self.file = None;
        }
        self.scanned = self.input.len();
        if self.input.is_empty() {
            // An idle connection holds no memory.
            self.input = Vec::new();
        }
        Ok(())
    }

    fn execute(
        &mut self,
        line: Line,
        file: Option<File>,
        context: &Context,
        wakers: MakeWaker<'_>,
    ) -> Result<(), Closed> {
        let id = line.id;
        let command = match line.command {
            Ok(command) => command,
            Err(error) => return self.answer(id, Err(error)),
        };
        let cost = command.waiting_cost();
        if let Some(cost) = cost
            && (self.waiting.len() >= MAX_WAITING || cost > MAX_WAITING_BYTES - self.waiting_bytes)
        {
            let desc = format!(
                "{} commands of this connection wait for the guest: let some finish first",
                self.waiting.len()
            );
            return self.answer(id, Err(CommandError::new(ErrorClass::Internal, desc)));
        }
        let key = self.next_key;
        self.next_key += 1;
        let mut running = context.begin(command, file);
        let waker = wakers(key);
        match running
            .as_mut()
            .poll(&mut std::task::Context::from_waker(&waker))
        {
            Poll::Ready(answer) => self.answer(id, answer),
            Poll::Pending => {
                let cost = cost.unwrap_or(0);
                self.waiting_bytes += cost;
                self.waiting.insert(key, Waiting { id, cost, running });
                Ok(())
            }
        }
    }

    fn answer(&mut self, id: Option<Value>, answer: Answer) -> Result<(), Closed> {
        if self.output.len() - self.sent > MAX_UNREAD {
            self.send()?;
            if self.output.len() - self.sent > MAX_UNREAD {
                log::warn!("control: a client that does not read its answers is disconnected");
                return Err(Closed);
            }
        }
        let mut object = match answer {
            Ok(value) => json!({"return": value}),
            Err(error) => json!({"error": error}),
        };
        if let (Some(id), Some(object)) = (id, object.as_object_mut()) {
            object.insert("id".to_owned(), id);
        }
        self.output.drain(..self.sent);
        self.sent = 0;
        // Writing to memory cannot fail, and neither can a value made of strings and numbers.
        let _ = serde_json::to_writer(&mut self.output, &object);
        self.output.push(b'\n');
        Ok(())
    }
}

fn too_long() -> Line {
    let error = CommandError::invalid(format!("a line is at most {MAX_LINE} bytes"));
    Line {
        id: None,
        command: Err(error),
    }
}

/// Tells a client that there is no room for it.
pub fn refuse(mut stream: &UnixStream, reason: &str) {
    let error = CommandError::new(ErrorClass::Internal, reason);
    // It may be gone already.
    let _ = stream.write_all(format!("{}\n", json!({"error": error})).as_bytes());
}
