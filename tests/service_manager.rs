// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The program as a service: descriptors that are passed by name, and what it tells the manager, as systemd does both.

mod common;

use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixDatagram, UnixListener};
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};

use common::program::binary;
use common::{Guest, GuestOptions, PATIENCE};
use tempfile::TempDir;

/// A manager that listens to its service, and the service's socket.
struct Manager {
    directory: TempDir,
    notify: UnixDatagram,
}

impl Manager {
    fn new() -> Self {
        let directory = tempfile::tempdir().expect("directory");
        let notify = UnixDatagram::bind(directory.path().join("notify")).expect("bind");
        notify.set_read_timeout(Some(PATIENCE)).expect("timeout");
        Self { directory, notify }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Starts the program with `passed` as descriptor 3. The shell sets variables, among them its own process number, which is
    /// the program's.
    fn start(&self, variables: &str, passed: impl Into<OwnedFd>, options: &str) -> Child {
        let script = format!(
            "export LISTEN_PID=$$ LISTEN_FDS=1 {variables}; exec {} --endpoint 00:05.0 {options} 3<&0 </dev/null",
            binary()
        );
        Command::new("sh")
            .args(["-c", &script])
            .env("NOTIFY_SOCKET", self.path("notify"))
            .stdin(Stdio::from(passed.into()))
            .stderr(Stdio::piped())
            .spawn()
            .expect("a shell")
    }

    /// The next message of the service.
    fn news(&self) -> String {
        let mut bytes = [0; 256];
        let length = self.notify.recv(&mut bytes).expect("news");
        String::from_utf8_lossy(&bytes[..length]).into_owned()
    }

    fn listener(&self) -> UnixListener {
        UnixListener::bind(self.path("front-end")).expect("bind")
    }
}

fn end(child: Child, signal: &str) -> Output {
    let kill = Command::new("kill")
        .args([signal, &child.id().to_string()])
        .status();
    assert!(kill.expect("kill").success());
    child.wait_with_output().expect("its end")
}

#[test]
fn a_socket_is_taken_by_its_name_and_the_manager_hears_of_start_and_end() {
    let manager = Manager::new();
    let child = manager.start(
        "LISTEN_FDNAMES=front-end",
        manager.listener(),
        "--fd front-end --seccomp kill",
    );
    let ready = "READY=1\nSTATUS=Ready for front-ends, with endpoints: 1";
    assert_eq!(manager.news(), ready);
    // It is ready: the filter is there, and a front-end is served at once.
    let status = std::fs::read_to_string(format!("/proc/{}/status", child.id())).expect("status");
    assert!(status.contains("\nSeccomp:\t2\n"), "{status}");
    let guest = Guest::connect(&manager.path("front-end"), &GuestOptions::default());
    drop(guest);
    let output = end(child, "-TERM");
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert!(manager.news().starts_with("STOPPING=1\n"));
    // The socket is the manager's.
    assert!(manager.path("front-end").exists());
}

#[test]
fn a_service_that_does_not_start_is_never_ready() {
    for (variables, options, told) in [
        (
            "LISTEN_FDNAMES=other",
            "--fd front-end",
            r#"those passed are ["other"]"#,
        ),
        (
            "LISTEN_FDNAMES=front-end LISTEN_PID=1",
            "--fd front-end",
            "are for process 1 (LISTEN_PID)",
        ),
        (
            "LISTEN_FDNAMES=front-end LISTEN_FDS=2",
            "--fd front-end",
            "LISTEN_FDNAMES=front-end is not understood",
        ),
        (
            "LISTEN_FDNAMES=front-end NOTIFY_SOCKET=/nonexistent/notify",
            "--fd front-end",
            "at NOTIFY_SOCKET: ",
        ),
    ] {
        let manager = Manager::new();
        let child = manager.start(variables, manager.listener(), options);
        let output = child.wait_with_output().expect("its end");
        assert_eq!(output.status.code(), Some(1));
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(text.contains(told), "{text}");
        manager.notify.set_nonblocking(true).expect("nonblocking");
        assert!(manager.notify.recv(&mut [0; 1]).is_err());
    }
}
