// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! One connection: commands in, answers out, and the commands that wait.

use std::collections::{BTreeMap, VecDeque};
use std::io::{self, Write};
use std::os::unix::net::UnixStream;
use std::task::{Poll, Waker};

use serde_json::{Value, json};

use crate::control::command::{CommandError, ErrorClass, Line};
use crate::control::execute::{Context, Running};
use crate::control::input::{Descriptors, Input};
use crate::control::output::{Answer, Output};

/// Answers that a client may leave unread, in bytes. One that leaves more is disconnected.
const MAX_UNREAD: usize = 1 << 20;
/// Commands of a connection that wait at a time.
pub const MAX_WAITING: usize = 256;
/// Bytes that they may hold on to in all.
const MAX_WAITING_BYTES: usize = 16 << 20;

/// Makes the waker of a command from its key.
pub type MakeWaker<'a> = &'a dyn Fn(u64) -> Waker;

/// A connection.
pub struct Connection {
    stream: UnixStream,
    input: Input,
    output: Output,
    waiting: BTreeMap<u64, Waiting>,
    waiting_bytes: usize,
    /// Those that can go on, when the answer before them is sent.
    ready: VecDeque<u64>,
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

impl From<io::Error> for Closed {
    fn from(_: io::Error) -> Self {
        Self
    }
}

impl Connection {
    /// A connection over a stream that does not block.
    pub fn new(stream: UnixStream) -> Self {
        Self {
            stream,
            input: Input::default(),
            output: Output::default(),
            waiting: BTreeMap::new(),
            waiting_bytes: 0,
            ready: VecDeque::new(),
            next_key: 0,
        }
    }

    /// The stream.
    pub fn stream(&self) -> &UnixStream {
        &self.stream
    }

    /// Whether the client may send more.
    pub fn wants_input(&self) -> bool {
        !self.input.has_ended() && !self.output.is_unfinished()
    }

    /// Whether answers wait for room.
    pub fn wants_output(&self) -> bool {
        !self.output.is_empty()
    }

    /// Reads once if there is something to read, carries out commands, and sends what it can.
    ///
    /// # Errors
    /// The connection is over.
    pub fn serve(
        &mut self,
        readable: bool,
        context: &Context,
        wakers: MakeWaker<'_>,
    ) -> Result<(), Closed> {
        if readable && self.wants_input() {
            self.input.receive(&self.stream)?;
        }
        self.advance(context, wakers)
    }

    /// Goes on with a command that waited.
    ///
    /// # Errors
    /// The connection is over.
    pub fn resume(
        &mut self,
        key: u64,
        context: &Context,
        wakers: MakeWaker<'_>,
    ) -> Result<(), Closed> {
        self.ready.push_back(key);
        self.advance(context, wakers)
    }

    fn advance(&mut self, context: &Context, wakers: MakeWaker<'_>) -> Result<(), Closed> {
        loop {
            while !self.output.is_unfinished() {
                if let Some(key) = self.ready.pop_front() {
                    self.poll(key, &wakers(key))?;
                } else if let Some((line, descriptors)) = self.input.next_line() {
                    self.execute(line, descriptors, context, wakers)?;
                } else {
                    break;
                }
            }
            let unfinished = self.output.is_unfinished();
            self.output.send(&self.stream)?;
            // What waited for that answer may go on; if there is more of it, other connections have their turn first.
            if !unfinished || self.wants_output() {
                break;
            }
        }
        match self.input.has_ended() && self.output.is_empty() && self.waiting.is_empty() {
            true => Err(Closed),
            false => Ok(()),
        }
    }

    fn poll(&mut self, key: u64, waker: &Waker) -> Result<(), Closed> {
        // A command that was woken twice may be over.
        let Some(waiting) = self.waiting.get_mut(&key) else {
            return Ok(());
        };
        let mut context = std::task::Context::from_waker(waker);
        if let Poll::Ready(answer) = waiting.running.as_mut().poll(&mut context)
            && let Some(waiting) = self.waiting.remove(&key)
        {
            self.waiting_bytes -= waiting.cost;
            self.answer(waiting.id, answer)?;
        }
        Ok(())
    }

    fn execute(
        &mut self,
        line: Line,
        descriptors: Descriptors,
        context: &Context,
        wakers: MakeWaker<'_>,
    ) -> Result<(), Closed> {
        let id = line.id;
        let command = match line.command {
            Ok(command) => command,
            Err(error) => return self.answer(id, Err(error)),
        };
        if descriptors.count > command.descriptors() {
            let desc = format!(
                "{} descriptors came with the command, which takes {}: all are closed",
                descriptors.count,
                command.descriptors()
            );
            return self.answer(id, Err(CommandError::invalid(desc)));
        }
        let cost = command.waiting_cost();
        if let Some(cost) = cost
            && (self.waiting.len() >= MAX_WAITING || cost > MAX_WAITING_BYTES - self.waiting_bytes)
        {
            let desc = format!(
                "{} commands of this connection wait for the guest: let some finish first",
                self.waiting.len()
            );
            return self.answer(id, Err(CommandError::new(ErrorClass::TryAgain, desc)));
        }
        let key = self.next_key;
        self.next_key += 1;
        let mut running = context.begin(command, descriptors.first);
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
        if self.output.unread() > MAX_UNREAD {
            self.output.send(&self.stream)?;
            if self.output.unread() > MAX_UNREAD {
                log::warn!("control: a client that does not read its answers is disconnected");
                return Err(Closed);
            }
        }
        self.output.push(id, answer);
        Ok(())
    }
}

/// Tells a client that there is no room for it.
pub fn refuse(mut stream: &UnixStream, reason: &str) {
    let error = CommandError::new(ErrorClass::TryAgain, reason);
    // It may be gone already.
    let _ = stream.write_all(format!("{}\n", json!({"error": error})).as_bytes());
}
