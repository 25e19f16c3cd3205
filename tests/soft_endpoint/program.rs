// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The whole program with a function, confined by its system call filter: a connection's trouble is that connection's.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

use rustix::process::{Pid, Resource, Rlimit, getrlimit, prlimit};
use vmm_sys_util::eventfd::EventFd;

use crate::common::{PATIENCE, Program, wait_until};
use crate::connection::{DEVICE_RESET, REGION_READ, answer, message, region};
use crate::harness::{COMMAND, CONFIG, MEMORY_AND_MASTER, MSIX, MSIX_CONTROL, command, reg};

/// The program with one function, and where that waits for front-ends.
fn start() -> (Program, PathBuf) {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("pci");
    let endpoint = format!("00:05.0,soft={}", path.display());
    let program = Program::start_in(directory, &["--endpoint", &endpoint]);
    (program, path)
}

fn connect(path: &PathBuf) -> UnixStream {
    let stream = UnixStream::connect(path).expect("a connection");
    stream.set_read_timeout(Some(PATIENCE)).expect("time-out");
    stream
}

/// Whether the function is there: it answers, or the connection is closed.
fn is_served(stream: &mut UnixStream) -> bool {
    if stream.write_all(&message(DEVICE_RESET, 16, &[])).is_err() {
        return false;
    }
    let mut header = [0; 16];
    stream.read_exact(&mut header).is_ok()
}

#[test]
fn what_is_refused_to_a_client_without_end_is_few_lines_in_the_log() {
    let (mut program, path) = start();
    let mut stream = connect(&path);
    for _ in 0..1000 {
        let read = message(REGION_READ, 32, &region(0, 99, 4));
        stream.write_all(&read).expect("send");
        assert_eq!(answer(&mut stream), libc::EINVAL);
    }
    let seen = program.execute(&["endpoint", "endpoint=00:05.0"]);
    assert_eq!(seen.expect("an answer")["refused"], 1000);
    let (code, log) = program.end_by("-TERM");
    assert_eq!(code, Some(0), "{log}");
    // The 1st, 2nd, 4th, ..., 512th.
    let lines = log.lines().filter(|line| line.contains("refused")).count();
    assert_eq!(lines, 10, "{log}");
    assert!(log.len() < 4096, "{log}");
}

#[test]
fn a_connection_without_descriptors_is_refused_and_the_next_one_is_served() {
    let (mut program, path) = start();
    let pid = Pid::from_raw(program.id() as i32).expect("a process");
    let open = || {
        let open = fs::read_dir(format!("/proc/{}/fd", program.id())).expect("descriptors");
        open.count() as u64
    };
    let limit = |current: Option<u64>| {
        let maximum = getrlimit(Resource::Nofile).maximum;
        let new = Rlimit { current, maximum };
        prlimit(Some(pid), Resource::Nofile, new).expect("a limit");
    };
    // Served once, so that everything is open that stays open.
    let mut first = connect(&path);
    assert!(is_served(&mut first));
    let with_one = open();
    drop(first);
    wait_until("its descriptors are closed", || open() < with_one);
    wait_until("the front-end is gone", || {
        let seen = program.execute(&["endpoint", "endpoint=00:05.0"]);
        seen.expect("an answer")["connected"] == false
    });
    let before = open();
    let mut refused = 0;
    // One for the connection itself, without which it waits, and then one more each time.
    for more in 1.. {
        assert!(more < 64, "never served");
        limit(Some(before + more));
        if is_served(&mut connect(&path)) {
            break;
        }
        refused += 1;
        wait_until("its descriptors are closed", || open() <= before);
    }
    assert!(refused > 2, "{refused}");
    limit(getrlimit(Resource::Nofile).current);
    wait_until("its descriptors are closed", || open() <= before);
    assert!(is_served(&mut connect(&path)));
    let (code, log) = program.end_by("-TERM");
    assert_eq!(code, Some(0), "{log}");
    let lines = log
        .lines()
        .filter(|line| line.contains("cannot be accepted"));
    assert!(lines.count() >= refused, "{log}");
}

#[test]
fn a_client_that_reads_no_answers_does_not_hold_up_the_end() {
    let (mut program, path) = start();
    let mut stream = connect(&path);
    assert!(is_served(&mut stream));
    stream.set_nonblocking(true).expect("nonblocking");
    let read = message(REGION_READ, 32, &region(0, 7, 256));
    // Until the answers fill every buffer between here and there, and then the requests.
    while stream.write_all(&read).is_ok() {}
    let (code, log) = program.end_by("-TERM");
    assert_eq!(code, Some(0), "{log}");
}

#[test]
fn an_interrupt_that_blocks_does_not_hold_up_the_end() {
    let (mut program, path) = start();
    let mut client = vfio_user::Client::new(&path).expect("a connection");
    let event = EventFd::new(0).expect("eventfd");
    event.write(u64::MAX - 1).expect("room");
    let fds = [std::os::fd::AsRawFd::as_raw_fd(&event)];
    client.set_irqs(MSIX, 0x24, 0, 1, &fds).expect("set");
    let mut write = |region, offset, data: &[u8]| {
        client.region_write(region, offset, data).expect("write");
    };
    write(CONFIG, COMMAND, &MEMORY_AND_MASTER.to_ne_bytes());
    write(CONFIG, MSIX_CONTROL, &(1_u16 << 15).to_ne_bytes());
    write(0, reg::IRQ_TYPE, &2_u32.to_ne_bytes());
    write(0, reg::IRQ_NUMBER, &1_u32.to_ne_bytes());
    write(0, reg::COMMAND, &command::RAISE_MSIX.to_ne_bytes());
    wait_until("the interrupt", || {
        let seen = program.execute(&["endpoint", "endpoint=00:05.0"]);
        let seen = seen.expect("an answer");
        seen["interrupts"]["signalled"] == 1 && seen["bars"]["0"]["busy"] == true
    });
    let removed = program.execute(&["endpoint-remove", "endpoint=00:05.0"]);
    removed.expect("it is removed");
    let (code, log) = program.end_by("-TERM");
    assert_eq!(code, Some(0), "{log}");
}

#[test]
fn a_connection_without_memory_for_its_threads_is_refused_and_the_next_one_is_served() {
    let (mut program, path) = start();
    let pid = Pid::from_raw(program.id() as i32).expect("a process");
    let limit = |current: Option<u64>| {
        let new = Rlimit {
            current,
            maximum: None,
        };
        prlimit(Some(pid), Resource::As, new).expect("a limit");
    };
    let statm = fs::read_to_string(format!("/proc/{}/statm", program.id())).expect("its size");
    let pages: u64 = statm
        .split(' ')
        .next()
        .and_then(|n| n.parse().ok())
        .expect("pages");
    // Room for what a connection allocates, and not for the stack of a thread.
    limit(Some(pages * 4096 + (1 << 20)));
    assert!(!is_served(&mut connect(&path)));
    limit(None);
    assert!(is_served(&mut connect(&path)));
    let (code, log) = program.end_by("-TERM");
    assert_eq!(code, Some(0), "{log}");
    assert!(log.contains("cannot be accepted"), "{log}");
}
