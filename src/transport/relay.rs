// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A front-end on a socket that is connected already (`--fd`).
//!
//! vhost-user-backend 0.24 takes connections from a listener only. So it gets one, and two threads carry messages and
//! descriptors between its one connection and the front-end's. Messages are carried whole, one at a time: the library
//! takes descriptors with the header of the message that they belong to, and does not wait for the rest of one.

use std::io::{self, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};

use crate::os::relay;

/// Length in bytes of a message's header: request, flags, and length of the rest, four bytes each.
const HEADER: usize = 12;

/// The longest rest of a message (MAX_MSG_SIZE of crate vhost).
const MAX_REST: usize = 4096;

/// Answers carried at once. They need not come in one piece.
const BUFFER: usize = 4096;

/// A listener at which the front-end waits.
pub(super) fn listen(frontend: UnixStream) -> io::Result<UnixListener> {
    let (listener, ours) = relay::listen()?;
    carry_messages(frontend.try_clone()?, ours.try_clone()?)?;
    carry_answers(ours, frontend)?;
    Ok(listener)
}

/// From the front-end to us, with descriptors.
fn carry_messages(from: UnixStream, to: UnixStream) -> io::Result<()> {
    relay::spawn("front-end relay", move || {
        let mut message = Vec::with_capacity(HEADER + MAX_REST);
        while let Ok(descriptors) = relay::receive(&from, &mut message, HEADER, rest)
            && !message.is_empty()
            && relay::send(&to, &message, &descriptors).is_ok()
        {}
        relay::end(&from, &to);
    })
}

/// The length of the rest of a message. One that is too long is passed on without it: the library refuses it.
fn rest(header: &[u8]) -> io::Result<usize> {
    let length = header.last_chunk().map_or(0, |&l| u32::from_ne_bytes(l));
    let rest = usize::try_from(length).unwrap_or(usize::MAX);
    Ok(if rest <= MAX_REST { rest } else { 0 })
}

/// From us to the front-end. No answer has descriptors with the features that we offer.
fn carry_answers(mut from: UnixStream, mut to: UnixStream) -> io::Result<()> {
    relay::spawn("back-end relay", move || {
        let mut buffer = [0; BUFFER];
        while let Ok(length @ 1..) = from.read(&mut buffer) {
            if to
                .write_all(buffer.get(..length).unwrap_or_default())
                .is_err()
            {
                break;
            }
        }
        relay::end(&from, &to);
    })
}
