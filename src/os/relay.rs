// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Between a connection and a library that wants a listener: carries messages and descriptors from one to the other.
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

/// More than any message has: of vhost-user 32 (MAX_ATTACHED_FD_ENTRIES of crate vhost), of vfio-user 16.
const MAX_DESCRIPTORS: usize = 64;

/// A listener for a library, and our end of the one connection that waits there. Its directory is one that nobody
/// else can enter, and is gone before anything is said.
pub(crate) fn listen() -> io::Result<(UnixListener, UnixStream)> {
    let directory = private_directory()?;
    let path = directory.join("socket");
    let listener = UnixListener::bind(&path);
    let connected = UnixStream::connect(&path);
    // What fails here leaves an empty directory behind, and nobody to tell.
    let _ = std::fs::remove_file(&path);
    let _ = std::fs::remove_dir(&directory);
    Ok((listener?, connected?))
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

/// Starts a thread that carries.
pub(crate) fn spawn(name: &str, body: impl FnOnce() + Send + 'static) -> io::Result<()> {
    std::thread::Builder::new()
        .name(name.into())
        .spawn(body)
        .map(drop)
}

/// Closes both connections, for whoever waits at them too.
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

/// Sends a message with its descriptors.
pub(crate) fn send(to: &UnixStream, bytes: &[u8], descriptors: &[OwnedFd]) -> io::Result<()> {
    let raw: Vec<RawFd> = descriptors.iter().map(AsRawFd::as_raw_fd).collect();
    let sent = to
        .send_with_fds(&[bytes], &raw)
        .map_err(|error| io::Error::from_raw_os_error(error.errno()))?;
    let mut to = to;
    to.write_all(bytes.get(sent..).unwrap_or_default())
}
