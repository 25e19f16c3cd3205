// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Bytes of a UNIX socket with the descriptors that come with them.
#![forbid(unsafe_code)]

use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, recvmsg};

/// The most descriptors that a message can have (the kernel's SCM_MAX_FD). With room for fewer, the kernel drops the rest
/// without telling which; `recv_with_fd` of vmm-sys-util 0.15, with room for two, keeps the second open for ever.
const SCM_MAX_FD: usize = 253;

/// Receives bytes once, and the descriptors of the message that they end in: the kernel ends a read behind it. No bytes
/// mean the end of the stream. Descriptors are closed at an exec.
///
/// # Errors
/// What `recvmsg` fails with; `WouldBlock` if the socket does not block and has nothing.
pub fn receive(socket: impl AsFd, buffer: &mut [u8]) -> io::Result<(usize, Vec<OwnedFd>)> {
    let (bytes, descriptors, _) = receive_all(socket, buffer)?;
    Ok((bytes, descriptors))
}

/// The same, and whether descriptors are missing: there were more, or this process has no room for them.
///
/// # Errors
/// As for [`receive`].
pub fn receive_all(
    socket: impl AsFd,
    buffer: &mut [u8],
) -> io::Result<(usize, Vec<OwnedFd>, bool)> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(SCM_MAX_FD))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut parts = [IoSliceMut::new(buffer)];
    let received = recvmsg(socket, &mut parts, &mut control, RecvFlags::CMSG_CLOEXEC)?;
    let mut descriptors = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            descriptors.extend(rights);
        }
    }
    let truncated = received.flags.contains(ReturnFlags::CTRUNC);
    Ok((received.bytes, descriptors, truncated))
}
