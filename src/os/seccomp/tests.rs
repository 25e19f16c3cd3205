// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The filter, and what runs under it only when something has failed: each in a process of its own.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::{env, thread};

use super::*;
use crate::os::log_output::LogOutput;

#[test]
fn the_filter_can_be_made_for_this_machine() {
    let program = program(SeccompAction::KillProcess).expect("program");
    assert!(!program.is_empty());
}

#[test]
fn no_call_that_runs_a_program_or_traces_one_is_allowed() {
    let rules = rules().expect("rules");
    for call in [
        libc::SYS_execve,
        libc::SYS_execveat,
        libc::SYS_ptrace,
        libc::SYS_process_vm_writev,
        libc::SYS_pkey_mprotect,
        libc::SYS_bpf,
        libc::SYS_unshare,
        libc::SYS_mount,
        libc::SYS_kill,
    ] {
        assert!(!rules.contains_key(&call), "{call}");
    }
}

/// Set in the processes that the tests below start.
const CHILD: &str = "SECCOMP_TEST_CHILD";

/// Runs `body` in a process with the filter that ends it at a call that is not allowed. In that process the test calls
/// this too, and does not return.
fn run_filtered(test: &str, stderr: Stdio, body: impl FnOnce()) -> Output {
    if env::var_os(CHILD).is_some() {
        install(Seccomp::Kill).expect("the filter");
        body();
        std::process::exit(0);
    }
    let name = format!("os::seccomp::tests::{test}");
    Command::new(env::current_exe().expect("this program"))
        .args([&name, "--exact", "--nocapture"])
        .env(CHILD, "1")
        .env("RUST_BACKTRACE", "1")
        .stdout(Stdio::null())
        .stderr(stderr)
        .spawn()
        .and_then(Child::wait_with_output)
        .expect("a process")
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn a_call_that_is_not_allowed_ends_the_process() {
    let test = "a_call_that_is_not_allowed_ends_the_process";
    let output = run_filtered(test, Stdio::piped(), || {
        let _ = Command::new("true").status();
    });
    assert_eq!(output.status.signal(), Some(libc::SIGSYS));
}

#[test]
fn a_thread_that_panics_with_a_backtrace_does_not_end_the_process() {
    let test = "a_thread_that_panics_with_a_backtrace_does_not_end_the_process";
    let output = run_filtered(test, Stdio::piped(), || {
        let panicking = thread::spawn(|| panic!("as a test wants it"));
        assert!(panicking.join().is_err());
    });
    let text = stderr(&output);
    assert_eq!(output.status, ExitStatus::default(), "{text}");
    assert!(text.contains("as a test wants it"), "{text}");
    assert!(text.contains("stack backtrace:"), "{text}");
}

#[test]
fn memory_that_runs_out_aborts_and_says_so() {
    const TOO_MUCH: usize = 1 << 62;
    let test = "memory_that_runs_out_aborts_and_says_so";
    let output = run_filtered(test, Stdio::piped(), || {
        drop(std::hint::black_box(Vec::<u8>::with_capacity(TOO_MUCH)));
    });
    let text = stderr(&output);
    assert_eq!(output.status.signal(), Some(libc::SIGABRT), "{text}");
    let told = format!("memory allocation of {TOO_MUCH} bytes failed");
    assert!(text.contains(&told), "{text}");
}

#[test]
fn a_log_that_cannot_be_written_does_not_end_the_process() {
    let test = "a_log_that_cannot_be_written_does_not_end_the_process";
    let full = File::options().write(true).open("/dev/full").expect("open");
    let (reader, unread) = io::pipe().expect("pipe");
    drop(reader);
    for stderr in [Stdio::from(full), Stdio::from(unread)] {
        let output = run_filtered(test, stderr, || {
            LogOutput::default().write_all(b"line\n").expect("taken");
            let panicking = thread::spawn(|| panic!("as a test wants it"));
            assert!(panicking.join().is_err());
        });
        assert_eq!(output.status, ExitStatus::default());
    }
}
