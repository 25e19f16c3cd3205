// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Socket files: made, replaced when stale, removed at the end.
#![forbid(unsafe_code)]

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixDatagram, UnixListener};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, fchmod};
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
pub const OWNER_AND_GROUP: u32 = 0o660;
/// The owner alone may connect.
pub const OWNER: u32 = 0o600;

impl SocketFile {
    /// Listens on a path. A socket file without a listening process is replaced. The file has the permissions
    /// [`OWNER_AND_GROUP`] without those of the umask.
    ///
    /// # Errors
    /// Another process listens there, something else is in the way, or the system refuses.
    pub fn bind(path: &Path) -> Result<Self, ListenError> {
        Self::bind_for(path, OWNER_AND_GROUP)
    }

    /// The same with other permissions: at no time has the file more than these, without those of the umask.
    ///
    /// # Errors
    /// As of [`SocketFile::bind`].
    pub fn bind_for(path: &Path, mode: u32) -> Result<Self, ListenError> {
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

    /// Gives the file exactly these permissions, whatever the umask.
    ///
    /// # Errors
    /// The file is gone, or the file system refuses.
    pub fn set_mode(&self, mode: u32) -> Result<(), ListenError> {
        fs::set_permissions(&self.path, Permissions::from_mode(mode))
            .map_err(|error| ListenError::Io(self.path.clone(), error))
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
        let live = SocketFile::bind(&path).expect("replaced");
        assert!(matches!(
            SocketFile::bind(&path),
            Err(ListenError::InUse(_))
        ));
        // The listening process has noticed nothing.
        live.listener().set_nonblocking(true).expect("nonblocking");
        assert!(live.listener().accept().is_err());
        drop(live);
        assert!(!path.exists());
    }

    #[test]
    fn a_socket_file_has_the_permissions_asked_for_at_most() {
        let directory = tempfile::tempdir().expect("directory");
        let path = directory.path().join("socket");
        let mode = || fs::metadata(&path).expect("metadata").mode() & 0o777;
        // The umask of the test's process takes some away, and gives none.
        let file = SocketFile::bind(&path).expect("bind");
        assert_eq!(mode() & !OWNER_AND_GROUP, 0);
        file.set_mode(0o666).expect("mode");
        assert_eq!(mode(), 0o666);
        drop(file);
        let _file = SocketFile::bind_for(&path, OWNER).expect("bind");
        assert_eq!(mode(), OWNER);
    }

    #[test]
    fn a_file_that_is_no_socket_is_left_alone() {
        let directory = tempfile::tempdir().expect("directory");
        let path = directory.path().join("precious");
        fs::write(&path, "data").expect("write");
        assert!(matches!(
            SocketFile::bind(&path),
            Err(ListenError::NotASocket(_))
        ));
        assert_eq!(fs::read(&path).expect("read"), b"data");
    }

    #[test]
    fn a_file_that_somebody_else_made_since_is_left_alone() {
        let directory = tempfile::tempdir().expect("directory");
        let path = directory.path().join("socket");
        let first = SocketFile::bind(&path).expect("bind");
        // Another file first, so that the inode's number is not used again at once.
        let other = directory.path().join("other");
        fs::write(&other, "data").expect("write");
        fs::rename(&other, &path).expect("rename");
        drop(first);
        assert!(path.exists());
    }

    #[test]
    fn a_directory_that_is_not_there_is_an_error_with_the_path() {
        let error = SocketFile::bind(Path::new("/nonexistent/socket")).expect_err("no directory");
        assert!(error.to_string().contains("/nonexistent/socket"));
    }
}
