// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What the start of the process needs from the kernel and std does not have: inherited descriptors, what kind
//! of socket one is, signals, the file mode of a socket; and the seals of a file.
#![expect(
    unsafe_code,
    reason = "inherited descriptors and five libc calls, each with its argument"
)]

use std::fs::File;
use std::io::{self, Read};
use std::mem::size_of;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};

use libc::c_int;

/// Takes ownership of a descriptor that the process inherited, and keeps it from children.
///
/// What this process opens itself is marked close-on-exec from the start, by std and by the crates used here;
/// what survived the exec that started it is not. So the mark tells whether a number is still anybody's to
/// take: a descriptor of our own is refused, and so is one that was taken before.
pub fn take_fd(fd: RawFd) -> io::Result<OwnedFd> {
    if fd <= libc::STDERR_FILENO {
        return Err(io::Error::other("it is a standard stream"));
    }
    // SAFETY: F_GETFD touches no memory; a number that is no descriptor is an error.
    let flags = unsafe { libc::fcntl(fd, libc::F_GETFD) };
    if flags < 0 {
        return Err(io::Error::last_os_error());
    }
    if flags & libc::FD_CLOEXEC != 0 {
        return Err(io::Error::other("it was not inherited"));
    }
    // SAFETY: F_SETFD takes an integer and touches no memory.
    if unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: it is open, and nobody in the process owns it: see above.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Whether a descriptor is a UNIX stream socket, and one that listens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SocketKind {
    /// It listens.
    Listening,
    /// It is connected, or could be.
    Connected,
    /// It is something else.
    Other,
}

/// What kind of socket a descriptor is.
pub fn socket_kind(fd: impl AsFd) -> SocketKind {
    let option = |name| socket_option(&fd, name).ok();
    if option(libc::SO_DOMAIN) != Some(libc::AF_UNIX)
        || option(libc::SO_TYPE) != Some(libc::SOCK_STREAM)
    {
        return SocketKind::Other;
    }
    match option(libc::SO_ACCEPTCONN) {
        Some(0) => SocketKind::Connected,
        Some(_) => SocketKind::Listening,
        None => SocketKind::Other,
    }
}

fn socket_option(fd: &impl AsFd, name: c_int) -> io::Result<c_int> {
    let mut value: c_int = 0;
    let mut length = size_of::<c_int>() as libc::socklen_t;
    // SAFETY: `value` is writable for the `length` bytes announced, and both outlive the call.
    let result = unsafe {
        libc::getsockopt(
            fd.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            name,
            (&raw mut value).cast(),
            &raw mut length,
        )
    };
    match result {
        0 => Ok(value),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Whether somebody can make a file shorter while it is mapped here, so that an access beyond its end would raise
/// SIGBUS. Only a file that is sealed against it (`F_SEAL_SHRINK`) cannot become shorter.
pub fn can_shrink(file: impl AsFd) -> bool {
    // SAFETY: F_GET_SEALS touches no memory; of a file that has no seals it is an error.
    let seals = unsafe { libc::fcntl(file.as_fd().as_raw_fd(), libc::F_GET_SEALS) };
    seals < 0 || seals & libc::F_SEAL_SHRINK == 0
}

/// Runs `f` while files that the process makes are for their owner only. For the start of the process: the
/// mask belongs to all threads.
pub fn for_owner_only<T>(f: impl FnOnce() -> T) -> T {
    // SAFETY: umask cannot fail and touches no memory.
    let before = unsafe { libc::umask(0o177) };
    let result = f();
    // SAFETY: as above.
    unsafe { libc::umask(before) };
    result
}

/// Signals that are read instead of being delivered.
pub struct Signals(File);

impl Signals {
    /// Blocks the signals for this thread and all that it starts from now on, and makes them readable.
    pub fn block(signals: &[c_int]) -> io::Result<Self> {
        let set = vmm_sys_util::signal::create_sigset(signals).map_err(io::Error::from)?;
        // SAFETY: `set` is initialised and outlives the call; the old mask is not asked for.
        let result =
            unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut()) };
        if result != 0 {
            return Err(io::Error::from_raw_os_error(result));
        }
        // SAFETY: `set` is initialised and outlives the call; -1 asks for a new descriptor.
        let fd = unsafe { libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: signalfd just made it, and nobody else has it.
        Ok(Self(unsafe { File::from_raw_fd(fd) }))
    }

    /// Waits for the next signal.
    pub fn wait(&mut self) -> io::Result<()> {
        let mut info = [0; size_of::<libc::signalfd_siginfo>()];
        self.0.read_exact(&mut info)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};

    use super::*;

    #[test]
    fn a_listening_socket_is_told_from_a_connected_one() {
        let directory = tempfile::tempdir().expect("directory");
        let listener = UnixListener::bind(directory.path().join("s")).expect("bind");
        assert_eq!(socket_kind(&listener), SocketKind::Listening);
        let (stream, _other) = UnixStream::pair().expect("pair");
        assert_eq!(socket_kind(&stream), SocketKind::Connected);
        let (datagram, _other) = UnixDatagram::pair().expect("pair");
        assert_eq!(socket_kind(&datagram), SocketKind::Other);
        assert_eq!(socket_kind(io::stderr()), SocketKind::Other);
    }

    #[test]
    fn a_file_that_is_not_sealed_can_shrink() {
        assert!(can_shrink(File::open("/dev/null").expect("open")));
        // SAFETY: the name ends with a zero; the descriptor is new and nobody else's.
        let memory = unsafe {
            let fd = libc::memfd_create(
                c"test".as_ptr(),
                libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING,
            );
            assert!(fd >= 0);
            OwnedFd::from_raw_fd(fd)
        };
        assert!(can_shrink(&memory));
        // SAFETY: F_ADD_SEALS takes an integer and touches no memory.
        let sealed =
            unsafe { libc::fcntl(memory.as_raw_fd(), libc::F_ADD_SEALS, libc::F_SEAL_SHRINK) };
        assert_eq!(sealed, 0);
        assert!(!can_shrink(&memory));
    }

    #[test]
    fn only_what_was_inherited_can_be_taken() {
        assert!(take_fd(1_000_000).is_err());
        assert!(take_fd(0).is_err());
        let own = File::open("/dev/null").expect("open");
        assert!(take_fd(own.as_raw_fd()).is_err());
    }
}
