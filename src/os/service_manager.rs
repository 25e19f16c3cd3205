// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What systemd, or what speaks its language, says and hears: descriptors that it passes by name (sd_listen_fds(3)), and
//! the state of the service (sd_notify(3)).
//!
//! The variables stay in the environment: this process starts no other one.
#![forbid(unsafe_code)]

use std::env;
use std::ffi::OsStr;
use std::io;
use std::os::fd::RawFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};

/// The number of the first descriptor that is passed.
const FIRST: RawFd = 3;

/// Why there is no descriptor of a name.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum PassedError {
    /// The process was not started with descriptors.
    #[error("no descriptors were passed by name: {0} is not set")]
    NotSet(&'static str),
    /// A variable has no sense.
    #[error("{0}={1} is not understood")]
    Malformed(&'static str, String),
    /// They are for the process that started this one, or for another child of it.
    #[error("the descriptors passed are for process {0} (LISTEN_PID), and this is {1}")]
    NotForUs(u32, u32),
    /// None has the name.
    #[error("those passed are {0:?}")]
    NoSuchName(Vec<String>),
    /// More than one has it.
    #[error("several of those passed have this name: {0:?}")]
    Ambiguous(Vec<String>),
}

/// The number of the descriptor that was passed to this process with a name (`FileDescriptorName=`, `OpenFile=`).
///
/// # Errors
/// None was, or the variables contradict each other.
pub fn passed(name: &str) -> Result<RawFd, PassedError> {
    let variable = |name| env::var_os(name).map(|value| value.to_string_lossy().into_owned());
    find(name, std::process::id(), variable)
}

fn find(
    name: &str,
    process: u32,
    variable: impl Fn(&'static str) -> Option<String>,
) -> Result<RawFd, PassedError> {
    let number = |key| -> Result<u32, PassedError> {
        let text = variable(key).ok_or(PassedError::NotSet(key))?;
        let number = text.parse();
        number.map_err(|_| PassedError::Malformed(key, text))
    };
    let owner = number("LISTEN_PID")?;
    if owner != process {
        return Err(PassedError::NotForUs(owner, process));
    }
    let count = number("LISTEN_FDS")?;
    let text = variable("LISTEN_FDNAMES").ok_or(PassedError::NotSet("LISTEN_FDNAMES"))?;
    let names: Vec<String> = text.split(':').map(str::to_owned).collect();
    if usize::try_from(count) != Ok(names.len()) {
        return Err(PassedError::Malformed("LISTEN_FDNAMES", text));
    }
    let mut found = (FIRST..).zip(&names).filter(|(_, known)| *known == name);
    match (found.next(), found.next()) {
        (Some((fd, _)), None) => Ok(fd),
        (Some(_), Some(_)) => Err(PassedError::Ambiguous(names)),
        (None, _) => Err(PassedError::NoSuchName(names)),
    }
}

/// Tells the service manager how the service is; without one, nobody.
#[derive(Debug, Default)]
pub struct Notifier(Option<UnixDatagram>);

impl Notifier {
    /// To the socket that NOTIFY_SOCKET names: a path, or `@` and an abstract name.
    ///
    /// # Errors
    /// It is set, and nobody listens there: the manager would wait in vain.
    pub fn from_environment() -> io::Result<Self> {
        match env::var_os("NOTIFY_SOCKET") {
            Some(name) if !name.is_empty() => Self::to(&name).map(|socket| Self(Some(socket))),
            _ => Ok(Self(None)),
        }
    }

    fn to(name: &OsStr) -> io::Result<UnixDatagram> {
        let address = match name.as_bytes() {
            [b'@', rest @ ..] => SocketAddr::from_abstract_name(rest)?,
            [b'/', ..] => SocketAddr::from_pathname(name)?,
            _ => {
                return Err(io::Error::other(
                    "it is neither a path nor an abstract name",
                ));
            }
        };
        let socket = UnixDatagram::unbound()?;
        socket.connect_addr(&address)?;
        // A manager that does not read holds nothing up.
        socket.set_nonblocking(true)?;
        Ok(socket)
    }

    /// The service is ready, and `status` says in a line how it is.
    pub fn ready(&self, status: &str) {
        self.send(&format!("READY=1\nSTATUS={status}"));
    }

    /// The service ends.
    pub fn stopping(&self) {
        self.send("STOPPING=1\nSTATUS=Ending: connections are closed, devices are blocked");
    }

    fn send(&self, text: &str) {
        if let Some(Err(error)) = self.0.as_ref().map(|socket| socket.send(text.as_bytes())) {
            log::warn!("the service manager cannot be told '{text}': {error}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OURS: u32 = 77;

    /// With these values of LISTEN_PID, LISTEN_FDS and LISTEN_FDNAMES.
    fn find_in(name: &str, values: [Option<&str>; 3]) -> Result<RawFd, PassedError> {
        let keys = ["LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"];
        find(name, OURS, |key| {
            let place = keys.iter().position(|known| *known == key)?;
            values[place].map(str::to_owned)
        })
    }

    #[test]
    fn a_descriptor_is_found_by_its_name() {
        let values = [Some("77"), Some("3"), Some("front-end:iommufd:device")];
        for (name, fd) in [("front-end", 3), ("iommufd", 4), ("device", 5)] {
            assert_eq!(find_in(name, values), Ok(fd));
        }
        assert!(matches!(
            find_in("control", values),
            Err(PassedError::NoSuchName(names)) if names.len() == 3
        ));
    }

    #[test]
    fn descriptors_of_another_process_are_left_alone() {
        let values = [Some("76"), Some("1"), Some("front-end")];
        assert_eq!(
            find_in("front-end", values),
            Err(PassedError::NotForUs(76, OURS))
        );
    }

    #[test]
    fn what_contradicts_itself_is_refused() {
        for values in [
            [None, Some("1"), Some("a")],
            [Some("77"), None, Some("a")],
            [Some("77"), Some("1"), None],
            [Some("77"), Some("2"), Some("a")],
            [Some("77"), Some("-1"), Some("a")],
            [Some("77"), Some("0"), Some("")],
            [Some("x"), Some("1"), Some("a")],
            [Some("77"), Some("2"), Some("a:a")],
        ] {
            assert!(find_in("a", values).is_err(), "{values:?}");
        }
    }

    #[test]
    fn the_manager_hears_over_a_path_and_over_an_abstract_name() {
        let directory = tempfile::tempdir().expect("directory");
        let path = directory.path().join("notify");
        let name = format!("vhost-device-iommu-test-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(&name).expect("address");
        for (listener, name) in [
            (UnixDatagram::bind(&path), path.as_os_str().to_owned()),
            (UnixDatagram::bind_addr(&address), format!("@{name}").into()),
        ] {
            let listener = listener.expect("bind");
            Notifier(Some(Notifier::to(&name).expect("socket"))).ready("good");
            let mut bytes = [0; 64];
            let length = listener.recv(&mut bytes).expect("a message");
            assert_eq!(&bytes[..length], b"READY=1\nSTATUS=good");
        }
        assert!(Notifier::to(OsStr::new("vsock:2:1")).is_err());
        assert!(Notifier::to(OsStr::new("/nonexistent/notify")).is_err());
    }
}
