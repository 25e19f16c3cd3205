// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Between a connection and a library that wants a listener: carries messages and descriptors from one to the other.

use std::io::{self, IoSlice, Read, Write};
use std::mem::MaybeUninit;
use std::net::Shutdown;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};

use rustix::cmsg_space;
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix,
    SocketFlags, SocketType, bind, connect, getsockname, listen as start_listening, sendmsg,
    socket_with,
};

use crate::os::message;

/// More than any message has: of vhost-user 32, of vfio-user 16.
const MAX_DESCRIPTORS: usize = 64;

/// How often a listener is made before giving up.
const ATTEMPTS: usize = 16;

/// A listener for a library, and our end of the one connection that waits there.
///
/// The kernel chooses its name, which is in no file system. Another process could find the name and connect first, but
/// there is room for one connection: then ours is not accepted, and another listener is made.
///
/// # Errors
/// A descriptor cannot be made, or other processes connect to each listener.
pub(crate) fn listen() -> io::Result<(UnixListener, UnixStream)> {
    for _ in 0..ATTEMPTS {
        let listener = unix_socket(SocketFlags::CLOEXEC)?;
        bind(&listener, &SocketAddrUnix::new_unnamed())?;
        // unix(7), Linux: one connection more waits than the number says.
        start_listening(&listener, 0)?;
        let ours = unix_socket(SocketFlags::CLOEXEC | SocketFlags::NONBLOCK)?;
        match connect(&ours, &getsockname(&listener)?) {
            Ok(()) => {
                let ours = UnixStream::from(ours);
                ours.set_nonblocking(false)?;
                return Ok((listener.into(), ours));
            }
            Err(Errno::AGAIN) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Err(io::Error::other(
        "another process connects to every socket that this process makes for itself",
    ))
}

fn unix_socket(flags: SocketFlags) -> io::Result<OwnedFd> {
    Ok(socket_with(
        AddressFamily::UNIX,
        SocketType::STREAM,
        flags,
        None,
    )?)
}

/// Starts a thread that carries.
pub(crate) fn spawn(name: &str, body: impl FnOnce() + Send + 'static) -> io::Result<()> {
    std::thread::Builder::new()
        .name(name.into())
        .spawn(body)
        .map(drop)
}

/// Closes both connections. Threads that wait at either are woken.
pub(crate) fn end(one: &UnixStream, other: &UnixStream) {
    // Either may be at its end already.
    let _ = one.shutdown(Shutdown::Both);
    let _ = other.shutdown(Shutdown::Both);
}

/// Receives one message and its descriptors; nothing at the end. `rest` says from its header how long the rest is. A
/// message that is cut short is handed out as far as it goes.
pub(crate) fn receive(
    from: &UnixStream,
    message: &mut Vec<u8>,
    header: usize,
    rest: impl FnOnce(&[u8]) -> io::Result<usize>,
) -> io::Result<Vec<OwnedFd>> {
    message.clear();
    let mut descriptors = Vec::new();
    while message.len() < header {
        let begin = message.len();
        message.resize(header, 0);
        let (length, more) = receive_part(from, &mut message[begin..])?;
        message.truncate(begin + length);
        if length == 0 {
            return Ok(descriptors);
        }
        descriptors.extend(more);
    }
    from.take(rest(message)? as u64).read_to_end(message)?;
    Ok(descriptors)
}

/// Receives some bytes into the part, and what descriptors come with them.
fn receive_part(from: &UnixStream, part: &mut [u8]) -> io::Result<(usize, Vec<OwnedFd>)> {
    let (bytes, descriptors, truncated) = loop {
        match message::receive_all(from, part) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            received => break received?,
        }
    };
    if truncated || descriptors.len() > MAX_DESCRIPTORS {
        return Err(io::Error::other(format!(
            "a message has more than {MAX_DESCRIPTORS} descriptors, or this process has no room for them \
             (RLIMIT_NOFILE)"
        )));
    }
    Ok((bytes, descriptors))
}

/// Sends a message with its descriptors.
pub(crate) fn send(to: &UnixStream, bytes: &[u8], descriptors: &[impl AsFd]) -> io::Result<()> {
    let borrowed: Vec<_> = descriptors.iter().map(AsFd::as_fd).collect();
    let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !borrowed.is_empty() && !control.push(SendAncillaryMessage::ScmRights(&borrowed)) {
        return Err(io::Error::other("a message has too many descriptors"));
    }
    let sent = rustix::io::retry_on_intr(|| {
        sendmsg(
            to,
            &[IoSlice::new(bytes)],
            &mut control,
            SendFlags::NOSIGNAL,
        )
    })?;
    let mut to = to;
    to.write_all(bytes.get(sent..).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg_attr(miri, ignore = "no sockets")]
    fn a_listener_has_our_connection_and_room_for_no_other() {
        let (listener, mut ours) = listen().expect("a listener");
        let name = getsockname(&listener).expect("a name");
        let other = unix_socket(SocketFlags::CLOEXEC | SocketFlags::NONBLOCK).expect("a socket");
        assert_eq!(connect(&other, &name), Err(Errno::AGAIN));
        let (mut theirs, _) = listener.accept().expect("a connection");
        ours.write_all(b"x").expect("a byte");
        let mut byte = [0];
        theirs.read_exact(&mut byte).expect("a byte");
        assert_eq!(byte, *b"x");
    }

    #[test]
    #[cfg_attr(miri, ignore = "no sockets")]
    fn messages_are_carried_with_their_descriptors() {
        let (one, other) = UnixStream::pair().expect("sockets");
        let (reader, writer) = std::io::pipe().expect("a pipe");
        send(&one, b"abcdef", &[OwnedFd::from(reader), writer.into()]).expect("sent");
        let mut message = Vec::new();
        let descriptors = receive(&other, &mut message, 2, |_| Ok(4)).expect("received");
        assert_eq!((message.as_slice(), descriptors.len()), (&b"abcdef"[..], 2));
        drop(one);
        let descriptors = receive(&other, &mut message, 2, |_| Ok(4)).expect("the end");
        assert!(message.is_empty() && descriptors.is_empty());
    }

    #[test]
    #[cfg_attr(miri, ignore = "no sockets")]
    fn more_descriptors_than_there_is_room_for_are_an_error() {
        let (one, other) = UnixStream::pair().expect("sockets");
        let file = std::fs::File::open("/dev/null").expect("a file");
        let many: Vec<_> = (0..2 * MAX_DESCRIPTORS).map(|_| file.as_fd()).collect();
        let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(2 * MAX_DESCRIPTORS))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        assert!(control.push(SendAncillaryMessage::ScmRights(&many)));
        sendmsg(
            &one,
            &[IoSlice::new(b"abcdef")],
            &mut control,
            SendFlags::empty(),
        )
        .expect("sent");
        receive(&other, &mut Vec::new(), 2, |_| Ok(4)).expect_err("too many");
    }
}
