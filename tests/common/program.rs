// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The program as a process.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, ChildStderr, Command, Stdio};

/// The program, with its sockets `vhost` and `control` in a directory.
pub fn program_in(directory: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_vhost-device-iommu"));
    command
        .arg("--socket-path")
        .arg(directory.join("vhost"))
        .arg("--control")
        .arg(directory.join("control"));
    command
}

/// Starts a program, and waits until it says that it listens: the process, and the rest of its log.
pub fn start_listening(command: &mut Command) -> (Child, BufReader<ChildStderr>) {
    let mut child = command
        .stderr(Stdio::piped())
        .spawn()
        .expect("the program starts");
    let mut log = BufReader::new(child.stderr.take().expect("its log"));
    let mut line = String::new();
    while !line.contains("listening on") {
        line.clear();
        assert_ne!(log.read_line(&mut line).expect("a line"), 0, "it ended");
    }
    (child, log)
}
