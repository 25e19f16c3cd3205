// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Between a front-end and the vfio-user library, which trusts what it is sent.
//!
//! Crate vfio_user 0.1.7 wants messages that are whole, of commands that it knows, and of the length that their command
//! has. And its errors carry the number 0, which QEMU takes for success. So two threads carry messages between the
//! front-end and the library's one connection, and let only such messages pass, with no more than [`MAX_DATA`] of data.

use std::io;
use std::os::unix::net::{UnixListener, UnixStream};

use crate::os::relay;

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

/// A listener at which the front-end waits.
pub(super) fn listen(frontend: UnixStream) -> io::Result<UnixListener> {
    let (listener, ours) = relay::listen()?;
    let (from, to) = (frontend.try_clone()?, ours.try_clone()?);
    relay::spawn("vfio-user in", move || carry_messages(&from, &to))?;
    relay::spawn("vfio-user out", move || carry_answers(&ours, &frontend))?;
    Ok(listener)
}

fn carry_messages(from: &UnixStream, to: &UnixStream) {
    let mut message = Vec::new();
    loop {
        let descriptors = match relay::receive(from, &mut message, HEADER, rest) {
            Ok(descriptors) => descriptors,
            Err(error) => {
                log::warn!("vfio-user: the front-end is disconnected: {error}");
                break;
            }
        };
        if message.is_empty() {
            break;
        }
        if descriptors.len() > MAX_DESCRIPTORS || !admit(&mut message) {
            log::warn!("vfio-user: the front-end is disconnected: a message is malformed");
            break;
        }
        if relay::send(to, &message, &descriptors).is_err() {
            break;
        }
    }
    relay::end(from, to);
}

fn carry_answers(from: &UnixStream, to: &UnixStream) {
    let mut answer = Vec::new();
    while let Ok(descriptors) = relay::receive(from, &mut answer, HEADER, rest)
        && !answer.is_empty()
    {
        name_error(&mut answer);
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

/// Whether the library can be given the message. What it would not read is cut off.
fn admit(message: &mut Vec<u8>) -> bool {
    let (Some(size), Some(command)) = (word(message, 4), message.get(2..4)) else {
        return false;
    };
    let command = u16::from_ne_bytes([command[0], command[1]]);
    if message.len() != size as usize {
        return false;
    }
    let count = || word(message, 28).map_or(usize::MAX, |count| count as usize);
    match command {
        command::VERSION => message.get(VERSION..).is_some_and(is_version_data),
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

/// Text with a zero at its end and nowhere else.
fn is_version_data(data: &[u8]) -> bool {
    data.len() <= MAX_VERSION
        && data.iter().position(|&byte| byte == 0) == data.len().checked_sub(1)
}

/// An error without a number gets one.
fn name_error(answer: &mut [u8]) {
    let failed = word(answer, 8).is_some_and(|flags| flags & FLAG_ERROR != 0);
    if failed && word(answer, 12) == Some(0) {
        answer[12..16].copy_from_slice(&libc::EINVAL.to_ne_bytes());
    }
}
