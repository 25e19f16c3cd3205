// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Between a front-end and the vfio-user library, which trusts what it is sent.
//!
//! Crate vfio_user 0.1.7 wants messages that are whole, of commands that it knows, and of the length that their command
//! has. It wants capabilities in version data, which are optional. Its errors carry the number 0, which QEMU takes for
//! success, and each of them is a line in the log. So two threads carry messages between the front-end and the library's
//! one connection. They let only such messages pass, with no more than [`MAX_DATA`] of data, and mend the rest.

use std::io;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use serde_json::{Value, json};

use crate::os::relay;
use crate::spec::EndpointId;

/// The most data of a message: `max_data_xfer_size` as the library announces it.
const MAX_DATA: usize = 1 << 20;
/// The longest version data: some JSON.
const MAX_VERSION: usize = 4096;
/// The most descriptors that the library takes with a message.
const MAX_DESCRIPTORS: usize = 16;

/// Length of a header: message ID, command, message size, flags, error.
const HEADER: usize = 16;
/// Header, offset, region, count.
const REGION_ACCESS: usize = 32;
/// Header, major, minor.
const VERSION: usize = 20;

const FLAG_ERROR: u32 = 1 << 5;

/// Commands whose length is more than a number.
mod command {
    pub const VERSION: u16 = 1;
    pub const REGION_READ: u16 = 9;
    pub const REGION_WRITE: u16 = 10;
}

/// What is refused to the front-ends of a function.
pub(super) struct Refusals {
    endpoint: EndpointId,
    count: AtomicU64,
}

impl Refusals {
    pub(super) fn new(endpoint: EndpointId) -> Self {
        Self {
            endpoint,
            count: AtomicU64::new(0),
        }
    }

    /// Since the function was made.
    pub(super) fn count(&self) -> u64 {
        self.count.load(Ordering::Relaxed)
    }

    /// Counts a refusal, and logs the 1st, 2nd, 4th, 8th, ...: a front-end can cause them without end.
    fn add(&self, what: std::fmt::Arguments<'_>) {
        let count = self.count.fetch_add(1, Ordering::Relaxed) + 1;
        if count.is_power_of_two() {
            let endpoint = self.endpoint;
            log::warn!("endpoint {endpoint}: {what} (refusal {count})");
        }
    }
}

/// A listener at which the front-end waits.
///
/// # Errors
/// The kernel has no descriptor or no thread to give. The front-end is disconnected then.
pub(super) fn listen(frontend: UnixStream, refusals: &Arc<Refusals>) -> io::Result<UnixListener> {
    let (listener, ours) = relay::listen()?;
    let both = (frontend.try_clone()?, ours.try_clone()?);
    let (from, to) = (frontend.try_clone()?, ours.try_clone()?);
    let counting = Arc::clone(refusals);
    relay::spawn("vfio-user in", move || {
        carry_messages(&from, &to, &counting)
    })?;
    let counting = Arc::clone(refusals);
    relay::spawn("vfio-user out", move || {
        carry_answers(&ours, &frontend, &counting)
    })
    // The one thread without the other would wait for ever.
    .inspect_err(|_| relay::end(&both.0, &both.1))?;
    Ok(listener)
}

fn carry_messages(from: &UnixStream, to: &UnixStream, refusals: &Refusals) {
    let mut message = Vec::new();
    loop {
        let descriptors = match relay::receive(from, &mut message, HEADER, rest) {
            Ok(descriptors) => descriptors,
            Err(error) => {
                refusals.add(format_args!("the front-end is disconnected: {error}"));
                break;
            }
        };
        if message.is_empty() {
            break;
        }
        if descriptors.len() > MAX_DESCRIPTORS || !admit(&mut message) {
            refusals.add(format_args!(
                "the front-end is disconnected: a message is malformed"
            ));
            break;
        }
        if relay::send(to, &message, &descriptors).is_err() {
            break;
        }
    }
    relay::end(from, to);
}

fn carry_answers(from: &UnixStream, to: &UnixStream, refusals: &Refusals) {
    let mut answer = Vec::new();
    while let Ok(descriptors) = relay::receive(from, &mut answer, HEADER, rest)
        && !answer.is_empty()
    {
        if is_error(&answer) {
            let command = command_of(&answer).unwrap_or(0);
            refusals.add(format_args!(
                "command {command} of the front-end is refused"
            ));
            name_error(&mut answer);
        }
        if relay::send(to, &answer, &descriptors).is_err() {
            break;
        }
    }
    relay::end(from, to);
}

fn word(message: &[u8], at: usize) -> Option<u32> {
    let bytes = message.get(at..at + 4)?;
    Some(u32::from_ne_bytes(bytes.try_into().ok()?))
}

/// How much comes after the header.
fn rest(header: &[u8]) -> io::Result<usize> {
    word(header, 4)
        .and_then(|size| usize::try_from(size).ok()?.checked_sub(HEADER))
        .filter(|&rest| rest <= MAX_DATA + REGION_ACCESS)
        .ok_or_else(|| io::Error::other("the size of a message is out of bounds"))
}

fn command_of(message: &[u8]) -> Option<u16> {
    let bytes = message.get(2..4)?;
    Some(u16::from_ne_bytes(bytes.try_into().ok()?))
}

/// Whether the library can be given the message. What it would not read is cut off, what it misses is added.
fn admit(message: &mut Vec<u8>) -> bool {
    let (Some(size), Some(command)) = (word(message, 4), command_of(message)) else {
        return false;
    };
    if message.len() != size as usize {
        return false;
    }
    let count = || word(message, 28).map_or(usize::MAX, |count| count as usize);
    match command {
        command::VERSION => admit_version(message),
        command::REGION_READ => message.len() == REGION_ACCESS && count() <= MAX_DATA,
        command::REGION_WRITE => message.len().checked_sub(REGION_ACCESS) == Some(count()),
        _ => match fixed_length(command) {
            Some(length) => message.len() == length,
            None => {
                message.truncate(HEADER);
                true
            }
        },
    }
}

/// The length of a message that has always the same.
fn fixed_length(command: u16) -> Option<usize> {
    Some(match command {
        2 => 48,      // DMA_MAP
        3 => 40,      // DMA_UNMAP
        4 => 32,      // DEVICE_GET_INFO
        5 => 48,      // DEVICE_GET_REGION_INFO
        7 => 32,      // DEVICE_GET_IRQ_INFO
        8 => 36,      // DEVICE_SET_IRQS; the descriptors are beside it
        13 => HEADER, // DEVICE_RESET
        _ => return None,
    })
}

/// Version data is text with a zero at its end and nowhere else. The capabilities in it are optional: if they are left out,
/// the library is told that there are none.
fn admit_version(message: &mut Vec<u8>) -> bool {
    let Some((0, text)) = message.get(VERSION..).and_then(<[u8]>::split_last) else {
        return false;
    };
    if text.len() >= MAX_VERSION || text.contains(&0) {
        return false;
    }
    if let Ok(Value::Object(mut data)) = serde_json::from_slice(text)
        && !data.contains_key("capabilities")
    {
        data.insert("capabilities".to_owned(), json!({}));
        let text = Value::Object(data).to_string();
        message.truncate(VERSION);
        message.extend(text.as_bytes());
        message.push(0);
        let size = message.len() as u32;
        message[4..8].copy_from_slice(&size.to_ne_bytes());
    }
    true
}

fn is_error(answer: &[u8]) -> bool {
    word(answer, 8).is_some_and(|flags| flags & FLAG_ERROR != 0)
}

/// An error without a number gets one.
fn name_error(answer: &mut [u8]) {
    if word(answer, 12) == Some(0) {
        answer[12..16].copy_from_slice(&libc::EINVAL.to_ne_bytes());
    }
}
