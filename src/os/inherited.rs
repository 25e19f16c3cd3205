// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What the start of the process needs from the kernel and std does not have: inherited descriptors, what kind
//! of socket one is, signals; and the seals of a file.
#![expect(
    unsafe_code,
    reason = "inherited descriptors are numbers; signals are libc's, each call with its argument"
)]

use std::fs::File;
use std::io::{self, Read};
use std::mem::{MaybeUninit, size_of};
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use libc::c_int;
use rustix::fs::{SealFlags, fcntl_get_seals};
use rustix::io::{FdFlags, fcntl_getfd, fcntl_setfd};
use rustix::net::{AddressFamily, SocketType, sockopt};

/// Takes ownership of a descriptor that the process inherited, and keeps it from children.
///
/// What this process opens itself is marked close-on-exec from the start, by std and by the crates used here;
/// what survived the exec that started it is not. So the mark tells whether a number is still anybody's to
/// take: a descriptor of our own is refused, and so is one that was taken before.
///
/// # Errors
/// The number is no descriptor, a standard stream, or one that was not inherited.
pub fn take_fd(fd: RawFd) -> io::Result<OwnedFd> {
    if fd <= libc::STDERR_FILENO {
        return Err(io::Error::other("it is a standard stream"));
    }
    // SAFETY: it is used for its flags only, which touches no memory; a number that is no descriptor is an error.
    let inherited = unsafe { BorrowedFd::borrow_raw(fd) };
    let flags = fcntl_getfd(inherited)?;
    if flags.contains(FdFlags::CLOEXEC) {
        return Err(io::Error::other("it was not inherited"));
    }
    fcntl_setfd(inherited, flags | FdFlags::CLOEXEC)?;
    // SAFETY: it is open, and nothing in the process owns it: see above.
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
    let domain = sockopt::socket_domain(&fd);
    let kind = sockopt::socket_type(&fd);
    if (domain, kind) != (Ok(AddressFamily::UNIX), Ok(SocketType::STREAM)) {
        return SocketKind::Other;
    }
    match sockopt::socket_acceptconn(&fd) {
        Ok(false) => SocketKind::Connected,
        Ok(true) => SocketKind::Listening,
        Err(_) => SocketKind::Other,
    }
}

/// Whether another process can make a file shorter while it is mapped here. An access beyond its end would raise
/// SIGBUS. Only a file that is sealed against it (`F_SEAL_SHRINK`) cannot become shorter.
pub fn can_shrink(file: impl AsFd) -> bool {
    // Of a file that has no seals it is an error.
    fcntl_get_seals(file).map_or(true, |seals| !seals.contains(SealFlags::SHRINK))
}

/// Signals that are read instead of being delivered.
pub struct Signals(File);

impl Signals {
    /// Blocks the signals for this thread and all that it starts from now on, and makes them readable. One that the
    /// process was started to ignore (as by `nohup`) stays ignored.
    ///
    /// # Errors
    /// The process has too many descriptors, or the kernel too little memory.
    pub fn block(signals: &[c_int]) -> io::Result<Self> {
        let signals: Vec<_> = signals.iter().copied().filter(is_heeded).collect();
        let set = vmm_sys_util::signal::create_sigset(&signals).map_err(io::Error::from)?;
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
        // SAFETY: signalfd just made it, and nothing else owns it.
        Ok(Self(unsafe { File::from_raw_fd(fd) }))
    }

    /// Waits for the next signal.
    ///
    /// # Errors
    /// The descriptor cannot be read.
    pub fn wait(&mut self) -> io::Result<()> {
        let mut info = [0; size_of::<libc::signalfd_siginfo>()];
        self.0.read_exact(&mut info)
    }
}

/// Whether a signal is not ignored.
fn is_heeded(&signal: &c_int) -> bool {
    let mut action = MaybeUninit::<libc::sigaction>::uninit();
    // SAFETY: no new action is given, and the old one is written to memory for it.
    match unsafe { libc::sigaction(signal, std::ptr::null(), action.as_mut_ptr()) } {
        // SAFETY: the call has succeeded, so it has written the action.
        0 => unsafe { action.assume_init() }.sa_sigaction != libc::SIG_IGN,
        _ => true,
    }
}

/// From now on a write beyond RLIMIT_FSIZE, such as to a log file, fails and does not end the process.
pub fn ignore_file_size_signal() {
    // SAFETY: no code of ours runs at the signal.
    unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;
    use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};

    use rustix::fs::MemfdFlags;

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
        let memory =
            rustix::fs::memfd_create("test", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)
                .expect("memfd");
        assert!(can_shrink(&memory));
        rustix::fs::fcntl_add_seals(&memory, SealFlags::SHRINK).expect("seal");
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
