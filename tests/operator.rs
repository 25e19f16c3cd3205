// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What an operator does to the running program: signals, logs that cannot be written, permissions, limits. The system
//! call filter is in force.

mod common;

use std::fs;
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};

use common::program::wait_for_start;
use common::{PATIENCE, wait_until};
use rustix::process::{Pid, Resource, Rlimit, Signal, kill_process, prlimit};
use serde_json::{Value, json};
use tempfile::TempDir;

const BINARY: &str = env!("CARGO_BIN_EXE_vhost-device-iommu");

/// The program as a shell starts it, with its sockets `vhost` and `control` in a directory.
struct Daemon {
    child: Child,
    directory: TempDir,
}

impl Daemon {
    /// Starts it after the shell has done `setup`, and waits until it answers.
    fn start(setup: &str, options: &[&str], log: impl Into<Stdio>) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        // A shell starts what it leaves in the background with signals ignored, and nohup does so too.
        let child = Command::new("env")
            .arg("--default-signal=HUP,INT,TERM,PIPE")
            .current_dir(directory.path())
            .args(["sh", "-c", &format!("{setup}; exec \"$0\" \"$@\""), BINARY])
            .args(["--socket-path", "vhost", "--control", "control"])
            .args(["--endpoint", "00:05.0"])
            .args(options)
            .stderr(log)
            .spawn()
            .expect("a shell");
        let daemon = Self { child, directory };
        wait_until("the program to listen", || {
            UnixStream::connect(daemon.path("control")).is_ok()
        });
        daemon.call(&json!({"execute": "status"}));
        wait_for_start(daemon.child.id());
        daemon
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn connect(&self) -> BufReader<UnixStream> {
        let stream = UnixStream::connect(self.path("control")).expect("connect");
        stream.set_read_timeout(Some(PATIENCE)).expect("timeout");
        BufReader::new(stream)
    }

    fn call(&self, command: &Value) -> Value {
        call(&mut self.connect(), command)
    }

    /// Has it write many lines to its log.
    fn fill_log(&self, lines: usize) {
        let mut client = self.connect();
        for _ in 0..lines.div_ceil(2) {
            for name in ["endpoint-add", "endpoint-remove"] {
                let arguments = json!({"endpoint": 9});
                let answer = call(
                    &mut client,
                    &json!({"execute": name, "arguments": arguments}),
                );
                assert_eq!(answer, json!({"return": {}}));
            }
        }
    }

    fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    fn signal(&self, signal: Signal) {
        kill_process(self.pid(), signal).expect("kill");
    }

    /// Waits for its end.
    fn wait(&mut self) -> ExitStatus {
        let mut status = None;
        wait_until("the program to end", || {
            status = self.child.try_wait().expect("wait");
            status.is_some()
        });
        status.expect("a status")
    }

    /// Ends it by a signal, and sees that nothing is left behind.
    fn end_by(mut self, signal: Signal) {
        self.signal(signal);
        assert_eq!(self.wait().code(), Some(0));
        assert!(!self.path("vhost").exists());
        assert!(!self.path("control").exists());
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn call(client: &mut BufReader<UnixStream>, command: &Value) -> Value {
    writeln!(client.get_mut(), "{command}").expect("send");
    let mut line = String::new();
    client.read_line(&mut line).expect("an answer");
    serde_json::from_str(&line).expect("JSON")
}

#[test]
fn a_hang_up_ends_it_as_sigterm_does() {
    for signal in [Signal::HUP, Signal::TERM, Signal::INT] {
        Daemon::start(":", &[], Stdio::null()).end_by(signal);
    }
}

#[test]
fn a_hang_up_that_it_was_started_to_ignore_is_ignored() {
    let daemon = Daemon::start("trap '' HUP", &[], Stdio::null());
    daemon.signal(Signal::HUP);
    daemon.call(&json!({"execute": "status"}));
    daemon.end_by(Signal::TERM);
}

#[test]
fn a_log_at_its_limit_ends_nothing() {
    // A block has 512 bytes, or 1024.
    let daemon = Daemon::start("ulimit -f 1; exec 2>log", &[], Stdio::null());
    daemon.fill_log(100);
    let length = fs::metadata(daemon.path("log")).expect("the log").len();
    assert!((512..=1024).contains(&length), "{length}");
    daemon.call(&json!({"execute": "status"}));
    daemon.end_by(Signal::TERM);
}

#[test]
fn a_log_on_a_full_file_system_or_without_a_reader_ends_nothing() {
    let full = fs::File::options().write(true).open("/dev/full");
    let (reader, unread) = io::pipe().expect("pipe");
    drop(reader);
    for log in [Stdio::from(full.expect("open")), Stdio::from(unread)] {
        let daemon = Daemon::start(":", &[], log);
        daemon.fill_log(10);
        daemon.end_by(Signal::HUP);
    }
}

#[test]
fn a_log_that_nobody_reads_holds_nothing_up() {
    let (_reader, log) = io::pipe().expect("pipe");
    let daemon = Daemon::start(":", &[], log);
    // More than a pipe takes.
    daemon.fill_log(3000);
    daemon.call(&json!({"execute": "status"}));
    daemon.end_by(Signal::TERM);
}

#[test]
fn a_second_signal_ends_it_at_once() {
    for (first, second) in [(Signal::TERM, Signal::HUP), (Signal::HUP, Signal::INT)] {
        let mut daemon = Daemon::start(":", &[], Stdio::null());
        daemon.signal(first);
        daemon.signal(second);
        // The first one may have been quicker.
        let status = daemon.wait();
        assert!(matches!(status.code(), Some(0 | 1)), "{status}");
    }
}

#[test]
fn sockets_of_front_ends_have_the_mode_asked_for_or_are_for_owner_and_group() {
    let mode = |daemon: &Daemon, name: &str| {
        let metadata = fs::metadata(daemon.path(name)).expect(name);
        metadata.permissions().mode() & 0o777
    };
    for (umask, options, vhost, pci) in [
        ("000", &[][..], 0o660, 0o660),
        ("022", &[], 0o640, 0o640),
        ("077", &["--socket-mode", "0666"], 0o666, 0o666),
        ("000", &["--socket-mode", "600"], 0o600, 0o600),
    ] {
        let function = ["--endpoint", "00:06.0,soft=pci"];
        let options = [&function[..], options].concat();
        let daemon = Daemon::start(&format!("umask {umask}"), &options, Stdio::null());
        assert_eq!(mode(&daemon, "vhost"), vhost, "{umask} {options:?}");
        assert_eq!(mode(&daemon, "pci"), pci, "{umask} {options:?}");
        assert_eq!(mode(&daemon, "control"), 0o600);
        // Under the filter too.
        let add = json!({"endpoint": 9, "soft": daemon.path("late")});
        let answer = daemon.call(&json!({"execute": "endpoint-add", "arguments": add}));
        assert_eq!(answer, json!({"return": {}}));
        assert_eq!(mode(&daemon, "late"), pci);
        daemon.end_by(Signal::TERM);
    }
}

#[test]
fn a_client_that_there_is_no_descriptor_for_is_served_when_there_is() {
    let daemon = Daemon::start(":", &[], Stdio::null());
    let mut first = daemon.connect();
    call(&mut first, &json!({"execute": "status"}));
    let open = fs::read_dir(format!("/proc/{}/fd", daemon.child.id())).expect("proc");
    let highest = open
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u64>().ok())
        .max();
    let limit = |number| Rlimit {
        current: Some(number),
        maximum: Some(1024),
    };
    let few = limit(highest.expect("descriptors") + 1);
    prlimit(Some(daemon.pid()), Resource::Nofile, few).expect("limit");
    // What is closed may have left room below: fill it up.
    let mut others: Vec<_> = (0..8).map(|_| daemon.connect()).collect();
    // Those that there is room for are served meanwhile.
    call(&mut first, &json!({"execute": "status"}));
    prlimit(Some(daemon.pid()), Resource::Nofile, limit(1024)).expect("limit");
    for client in &mut others {
        call(client, &json!({"execute": "status"}));
    }
    drop(others);
    daemon.end_by(Signal::TERM);
}
