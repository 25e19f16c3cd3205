// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Socket files: made, replaced when stale, removed at the end.
#![forbid(unsafe_code)]

use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::{UnixDatagram, UnixListener};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Mode, chmodat, fchmod};
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, listen as start_listening,
    socket_with,
};

/// Connections that wait to be accepted, at most.
const BACKLOG: i32 = 128;

/// Why a path cannot be listened on.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// Another process listens there.
    #[error("{0}: another process listens there; stop it, or choose another path")]
    InUse(PathBuf),
    /// Something that is no socket is in the way.
    #[error("{0}: a file that is not a socket is in the way; remove it, or choose another path")]
    NotASocket(PathBuf),
    /// The system says no.
    #[error("cannot listen on {0}: {1}")]
    Io(PathBuf, io::Error),
}

/// A listening socket whose file goes away with it.
#[derive(Debug)]
pub struct SocketFile {
    listener: UnixListener,
    path: PathBuf,
    /// Device and inode of the file: a file that another process put there since is left alone.
    identity: Option<(u64, u64)>,
}

/// The owner and the group of the file may connect, minus the umask.
const OWNER_AND_GROUP: u32 = 0o660;
/// The owner alone may connect.
const OWNER: u32 = 0o600;

impl SocketFile {
    /// Listens on a path for front-ends. A socket file without a listening process is replaced. With a mode the file has
    /// exactly these permissions, whatever the umask. Without one it is for owner and group (0660), minus the umask.
    ///
    /// # Errors
    /// Another process listens there, something else is in the way, or the system refuses.
    pub fn for_front_ends(path: &Path, mode: Option<u32>) -> Result<Self, ListenError> {
        let file = Self::bind(path, mode.unwrap_or(OWNER_AND_GROUP))?;
        if let Some(mode) = mode {
            file.set_mode(mode)?;
        }
        Ok(file)
    }

    /// Listens on a path for clients of the same user. The file is for its owner alone (0600), minus the umask.
    ///
    /// # Errors
    /// As of [`SocketFile::for_front_ends`].
    pub fn for_owner(path: &Path) -> Result<Self, ListenError> {
        Self::bind(path, OWNER)
    }

    /// At no time has the file more permissions than these, minus those of the umask.
    fn bind(path: &Path, mode: u32) -> Result<Self, ListenError> {
        let failed = |error| ListenError::Io(path.to_owned(), error);
        let listener = match listen(path, mode) {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
                remove_stale(path)?;
                listen(path, mode).map_err(failed)?
            }
            other => other.map_err(failed)?,
        };
        Ok(Self {
            listener,
            path: path.to_owned(),
            identity: identity(path),
        })
    }

    /// Gives the file exactly these permissions, by a system call that the filter allows.
    fn set_mode(&self, mode: u32) -> Result<(), ListenError> {
        chmodat(CWD, &self.path, Mode::from_raw_mode(mode), AtFlags::empty())
            .map_err(|error| ListenError::Io(self.path.clone(), error.into()))
    }

    /// The socket.
    pub fn listener(&self) -> &UnixListener {
        &self.listener
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if self.identity.is_some() && identity(&self.path) == self.identity {
            // Nothing depends on it: the next start replaces it.
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// The kernel gives the file the permissions that the socket has when it is bound, without those of the umask.
fn listen(path: &Path, mode: u32) -> io::Result<UnixListener> {
    let address = SocketAddrUnix::new(path)?;
    let socket = socket_with(
        AddressFamily::UNIX,
        SocketType::STREAM,
        SocketFlags::CLOEXEC,
        None,
    )?;
    fchmod(&socket, Mode::from_raw_mode(mode))?;
    bind(&socket, &address)?;
    start_listening(&socket, BACKLOG)?;
    Ok(socket.into())
}

fn identity(path: &Path) -> Option<(u64, u64)> {
    let metadata = fs::symlink_metadata(path).ok()?;
    Some((metadata.dev(), metadata.ino()))
}

fn remove_stale(path: &Path) -> Result<(), ListenError> {
    let failed = |error| ListenError::Io(path.to_owned(), error);
    let metadata = fs::metadata(path).map_err(failed)?;
    if !metadata.file_type().is_socket() {
        return Err(ListenError::NotASocket(path.to_owned()));
    }
    // A datagram socket can never be connected to a stream socket, so a listening process does not notice this. The error
    // tells the two apart: the wrong type (EPROTOTYPE) when a socket is bound there, refused when none is.
    let probe = UnixDatagram::unbound().map_err(failed)?;
    match probe.connect(path) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            fs::remove_file(path).map_err(failed)
        }
        Err(error) if error.raw_os_error() != Some(libc::EPROTOTYPE) => Err(failed(error)),
        _ => Err(ListenError::InUse(path.to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stale_socket_is_replaced_and_a_live_one_is_not() {
        let directory = tempfile::tempdir().expect("directory");
        let path = directory.path().join("socket");
        drop(UnixListener::bind(&path).expect("bind"));
        assert!(path.exists(), "std leaves the file behind");
        let live = SocketFile::for_owner(&path).expect("replaced");
        assert!(matches!(
            SocketFile::for_owner(&path),
            Err(ListenError::InUse(_))
        ));
        // The listening process has noticed nothing.
        live.listener().set_nonblocking(true).expect("nonblocking");
        assert!(live.listener().accept().is_err());
        drop(live);
        assert!(!path.exists());
    }

    #[test]
    fn a_socket_file_has_the_permissions_asked_for() {
        let directory = tempfile::tempdir().expect("directory");
        let path = directory.path().join("socket");
        let mode = || fs::metadata(&path).expect("metadata").mode() & 0o777;
        // The umask of the test's process takes some away, and gives none.
        let file = SocketFile::for_front_ends(&path, None).expect("bind");
        assert_eq!(mode() & !OWNER_AND_GROUP, 0);
        drop(file);
        for exact in [0o666, 0o600, 0o000] {
            let _file = SocketFile::for_front_ends(&path, Some(exact)).expect("bind");
            assert_eq!(mode(), exact);
        }
        let _file = SocketFile::for_owner(&path).expect("bind");
        assert_eq!(mode(), OWNER);
    }

    #[test]
    fn a_file_that_is_no_socket_is_left_alone() {
        let directory = tempfile::tempdir().expect("directory");
        let path = directory.path().join("precious");
        fs::write(&path, "data").expect("write");
        assert!(matches!(
            SocketFile::for_owner(&path),
            Err(ListenError::NotASocket(_))
        ));
        assert_eq!(fs::read(&path).expect("read"), b"data");
    }

    #[test]
    fn a_file_that_somebody_else_made_since_is_left_alone() {
        let directory = tempfile::tempdir().expect("directory");
        let path = directory.path().join("socket");
        let first = SocketFile::for_owner(&path).expect("bind");
        // Another file first, so that the inode's number is not used again at once.
        let other = directory.path().join("other");
        fs::write(&other, "data").expect("write");
        fs::rename(&other, &path).expect("rename");
        drop(first);
        assert!(path.exists());
    }

    #[test]
    fn a_directory_that_is_not_there_is_an_error_with_the_path() {
        let error =
            SocketFile::for_owner(Path::new("/nonexistent/socket")).expect_err("no directory");
        assert!(error.to_string().contains("/nonexistent/socket"));
    }
}
