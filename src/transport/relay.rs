// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A front-end on a socket that is connected already (`--fd`).
//!
//! vhost-user-backend 0.24 takes connections from a listener only. So it gets one, in a directory that nobody else
//! can enter and that is gone before anything is said; two threads carry messages and descriptors between its one
//! connection and the front-end's. Messages are carried whole, one at a time: the library takes descriptors with the
//! header of the message that they belong to, and does not wait for the rest of one.
#![expect(
    unsafe_code,
    reason = "the only safe call receives one descriptor; a memory table comes with up to 32"
)]

use std::fs::DirBuilder;
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};

use vmm_sys_util::sock_ctrl_msg::ScmSocket;

/// More than any message of vhost-user has (MAX_ATTACHED_FD_ENTRIES of crate vhost is 32).
const MAX_DESCRIPTORS: usize = 64;

/// Length in bytes of a message's header: request, flags, and length of the rest, four bytes each.
const HEADER: usize = 12;

/// The longest rest of a message (MAX_MSG_SIZE of crate vhost).
const MAX_REST: usize = 4096;

/// Answers carried at once. They need not come in one piece.
const BUFFER: usize = 4096;

/// A listener at which the front-end waits.
pub(super) fn listen(frontend: UnixStream) -> io::Result<UnixListener> {
    let directory = private_directory()?;
    let path = directory.join("socket");
    let listener = UnixListener::bind(&path);
    let connected = UnixStream::connect(&path);
    // What fails here leaves an empty directory behind, and nobody to tell.
    let _ = std::fs::remove_file(&path);
    let _ = std::fs::remove_dir(&directory);
    let (listener, ours) = (listener?, connected?);
    carry_messages(frontend.try_clone()?, ours.try_clone()?)?;
    carry_answers(ours, frontend)?;
    Ok(listener)
}

fn private_directory() -> io::Result<PathBuf> {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    loop {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("vhost-device-iommu-{}-{number}", std::process::id());
        let path = std::env::temp_dir().join(name);
        match DirBuilder::new().mode(0o700).create(&path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            result => return result.map(|()| path),
        }
    }
}

/// From the front-end to us, with descriptors.
fn carry_messages(from: UnixStream, to: UnixStream) -> io::Result<()> {
    spawn("front-end relay", move || {
        let mut message = Vec::with_capacity(HEADER + MAX_REST);
        while let Ok(descriptors) = receive(&from, &mut message)
            && !message.is_empty()
            && send(&to, &message, &descriptors).is_ok()
        {}
        end(&from, &to);
    })
}

/// From us to the front-end. No answer has descriptors with the features that we offer.
fn carry_answers(mut from: UnixStream, mut to: UnixStream) -> io::Result<()> {
    spawn("back-end relay", move || {
        let mut buffer = [0; BUFFER];
        while let Ok(length @ 1..) = from.read(&mut buffer) {
            if to
                .write_all(buffer.get(..length).unwrap_or_default())
                .is_err()
            {
                break;
            }
        }
        end(&from, &to);
    })
}

fn spawn(name: &str, body: impl FnOnce() + Send + 'static) -> io::Result<()> {
    std::thread::Builder::new()
        .name(name.into())
        .spawn(body)
        .map(drop)
}

fn end(one: &UnixStream, other: &UnixStream) {
    // Either may be at its end already.
    let _ = one.shutdown(Shutdown::Both);
    let _ = other.shutdown(Shutdown::Both);
}

/// Receives one message and its descriptors; nothing at the end. A message that is too long or cut short is passed on
/// as far as it goes: the library refuses it.
fn receive(from: &UnixStream, message: &mut Vec<u8>) -> io::Result<Vec<OwnedFd>> {
    message.clear();
    let mut descriptors = Vec::new();
    while message.len() < HEADER {
        let mut part = [0; HEADER];
        let (length, more) = receive_part(from, &mut part[message.len()..])?;
        if length == 0 {
            return Ok(descriptors);
        }
        let begin = message.len();
        message.extend_from_slice(&part[begin..begin + length]);
        descriptors.extend(more);
    }
    let length = message.last_chunk().map_or(0, |&l| u32::from_ne_bytes(l));
    let rest = usize::try_from(length).unwrap_or(usize::MAX);
    if rest <= MAX_REST {
        from.take(rest as u64).read_to_end(message)?;
    }
    Ok(descriptors)
}

/// Receives some bytes into the part, and what descriptors come with them.
fn receive_part(from: &UnixStream, part: &mut [u8]) -> io::Result<(usize, Vec<OwnedFd>)> {
    let mut descriptors: [RawFd; MAX_DESCRIPTORS] = [-1; MAX_DESCRIPTORS];
    let mut parts = [libc::iovec {
        iov_base: part.as_mut_ptr().cast(),
        iov_len: part.len(),
    }];
    // SAFETY: the one part is the buffer, which is ours alone for the time of the call.
    let received = unsafe { from.recv_with_fds(&mut parts, &mut descriptors) };
    let (length, count) = match received {
        Err(error) if error.errno() == libc::EINTR => return receive_part(from, part),
        other => other.map_err(|error| io::Error::from_raw_os_error(error.errno()))?,
    };
    let descriptors = descriptors
        .iter()
        .take(count)
        // SAFETY: the call has just made this descriptor, and nobody else knows it.
        .map(|&descriptor| unsafe { OwnedFd::from_raw_fd(descriptor) })
        .collect();
    Ok((length, descriptors))
}

fn send(to: &UnixStream, bytes: &[u8], descriptors: &[OwnedFd]) -> io::Result<()> {
    let raw: Vec<RawFd> = descriptors.iter().map(AsRawFd::as_raw_fd).collect();
    let sent = to
        .send_with_fds(&[bytes], &raw)
        .map_err(|error| io::Error::from_raw_os_error(error.errno()))?;
    let mut to = to;
    to.write_all(bytes.get(sent..).unwrap_or_default())
}
