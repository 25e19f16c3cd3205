// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The program as a process.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::Mutex;
use std::sync::mpsc::{Receiver, channel};

use serde_json::Value;
use tempfile::TempDir;

use super::{Guest, GuestOptions, PATIENCE, wait_until};

/// The program: the one that LAB_TEST_BACKEND names, or the one that cargo has built for the test. Cargo leaves programs with
/// different features in one place, so what it has built for one test can be replaced for another.
pub fn binary() -> String {
    std::env::var("LAB_TEST_BACKEND")
        .unwrap_or_else(|_| env!("CARGO_BIN_EXE_vhost-device-iommu").to_owned())
}

/// The program, with its sockets `vhost` and `control` in a directory. It needs no directory for temporary files.
pub fn program_in(directory: &Path) -> Command {
    let mut command = Command::new(binary());
    command
        .env("TMPDIR", "/nonexistent")
        .arg("--socket-path")
        .arg(directory.join("vhost"))
        .arg("--control")
        .arg(directory.join("control"));
    command
}

/// Starts the program with a descriptor and these options. It needs no directory for temporary files.
pub fn program_on(fd: impl Into<OwnedFd>, options: &str) -> Child {
    // The shell gives its child the number: what std opens is not inherited.
    Command::new("sh")
        .arg("-c")
        .arg(format!(
            "exec {} --fd 3 {options} 3<&0 </dev/null",
            binary()
        ))
        .env("TMPDIR", "/nonexistent")
        .stdin(Stdio::from(fd.into()))
        .stderr(Stdio::piped())
        .spawn()
        .expect("the program starts")
}

/// Waits until the program has its last thread, which is started when it listens already: a limit that a test sets must not
/// meet the start.
pub fn wait_for_start(process: u32) {
    wait_until("the end of the start", || {
        let threads = fs::read_dir(format!("/proc/{process}/task"));
        threads.into_iter().flatten().flatten().any(|thread| {
            let name = fs::read_to_string(thread.path().join("comm"));
            name.is_ok_and(|name| name.trim_end() == "fault worker")
        })
    });
}

/// The program, running in a directory of its own.
pub struct Program {
    child: Child,
    /// Its lines, as they come.
    log: Mutex<Receiver<String>>,
    directory: TempDir,
}

impl Program {
    /// Starts it in a new directory, and waits until it has started.
    pub fn start(options: &[&str]) -> Self {
        Self::start_in(tempfile::tempdir().expect("a directory"), options)
    }

    pub fn start_in(directory: TempDir, options: &[&str]) -> Self {
        let mut child = program_in(directory.path())
            .args(options)
            .stderr(Stdio::piped())
            .spawn()
            .expect("the program starts");
        let lines = BufReader::new(child.stderr.take().expect("its log")).lines();
        let (sender, log) = channel();
        std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                // The test may be over.
                let _ = sender.send(line);
            }
        });
        let program = Self {
            child,
            log: Mutex::new(log),
            directory,
        };
        program.wait_for_line(&["listening on"]);
        wait_for_start(program.id());
        program
    }

    /// Waits until it logs a line with one of these texts, and returns the line.
    pub fn wait_for_line(&self, texts: &[&str]) -> String {
        let log = self.log.lock().expect("no panic");
        let mut others = Vec::new();
        loop {
            let line = log.recv_timeout(PATIENCE);
            let line = line.unwrap_or_else(|error| {
                panic!("no line with {texts:?}: {error}: {others:#?}");
            });
            if texts.iter().any(|text| line.contains(text)) {
                return line;
            }
            others.push(line);
        }
    }

    /// Forgets what it has logged so far.
    pub fn forget_lines(&self) {
        let log = self.log.lock().expect("no panic");
        log.try_iter().for_each(drop);
    }

    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// A file in its directory.
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub fn guest(&self) -> Guest {
        Guest::connect(&self.path("vhost"), &GuestOptions::default())
    }

    /// One command over the control socket, by the client that comes with the program.
    pub fn ctl(&self, words: &[&str]) -> Output {
        Command::new(binary())
            .arg("ctl")
            .arg(self.path("control"))
            .args(words)
            .output()
            .expect("ctl starts")
    }

    /// The same: what it answers, or says instead.
    pub fn execute(&self, words: &[&str]) -> Result<Value, String> {
        let output = self.ctl(words);
        if output.status.success() {
            Ok(serde_json::from_slice(&output.stdout).expect("JSON"))
        } else {
            Err(String::from_utf8_lossy(&output.stderr).into_owned())
        }
    }

    /// Sends a signal, waits for the end, and returns the exit code and the rest of the log.
    pub fn end_by(&mut self, signal: &str) -> (Option<i32>, String) {
        let pid = self.child.id().to_string();
        let kill = Command::new("kill").args([signal, &pid]).status();
        assert!(kill.expect("kill").success());
        let code = self.child.wait().expect("its end").code();
        // To the end of the file.
        let lines: Vec<_> = self.log.get_mut().expect("no panic").iter().collect();
        (code, lines.join("\n"))
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // Where a test did not end it, or failed.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
