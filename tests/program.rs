// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The program with a guest: front-end, control socket and system call filter together.

mod common;

use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};
use std::thread;

use common::requests::{
    ATTACH_PAGE_REQUEST, READ, WRITE, attach, attach_table, detach, map, page_response, unmap,
};
use common::{Guest, GuestOptions, Program, program_on, wait_until};
use serde_json::json;
use vhost_device_iommu::spec::{EVENT_LEN, Status};

const OK: u8 = Status::Ok as u8;
const ENDPOINT: u32 = 0x28;
/// One with a PCI function.
const FUNCTION: u32 = 0x30;
/// In the first region of the guest's memory.
const BUFFER: u64 = 0x10_0000;

/// The program, with the filter that ends it at the first call that it should not need.
fn start() -> Program {
    let directory = tempfile::tempdir().expect("a directory");
    let function = format!("00:06.0,soft={}", directory.path().join("pci").display());
    let options = ["--endpoint", "00:05.0", "--seccomp", "kill", "--endpoint"];
    Program::start_in(directory, &[&options[..], &[&function]].concat())
}

/// Ends it as an operator does; its log.
fn stop(mut program: Program) -> String {
    let (code, log) = program.end_by("-TERM");
    assert_eq!(code, Some(0), "{log}");
    log
}

#[test]
fn a_mapped_buffer_is_reached_and_nothing_else() {
    let program = start();
    let mut guest = program.guest();
    assert_eq!(guest.request(&attach(1, ENDPOINT, 0)), OK);
    assert_eq!(
        guest.request(&map(1, 0x1000, 0x1fff, BUFFER, READ | WRITE)),
        OK
    );
    guest.ram.write(BUFFER, b"hello");
    let listed = json!([{"iova": 0x1000, "last": 0x1fff, "gpa": BUFFER, "flags": "rw"}]);
    assert_eq!(program.execute(&["mappings", "domain=1"]), Ok(listed));
    let read = |words: &[&str]| program.execute(words);
    assert_eq!(
        read(&["dma-read", "endpoint=00:05.0", "iova=0x1000", "length=5"]),
        Ok(json!({"data": "68656c6c6f"}))
    );
    let write = program.execute(&["dma-write", "endpoint=40", "iova=0x1001", "data=61"]);
    assert_eq!(write, Ok(json!({})));
    assert_eq!(guest.ram.read_vec(BUFFER, 5), b"hallo");
    assert_eq!(guest.request(&unmap(1, 0x1000, 0x1fff)), OK);
    let gone = read(&["dma-read", "endpoint=00:05.0", "iova=0x1000", "length=5"]);
    assert!(gone.expect_err("unmapped").contains("TranslationFault"));
    drop(guest);
    stop(program);
}

#[test]
fn a_page_request_travels_to_the_guest_and_back() {
    let program = start();
    let mut guest = program.guest();
    guest.post_events(4, EVENT_LEN, false);
    assert_eq!(guest.request(&attach(1, ENDPOINT, ATTACH_PAGE_REQUEST)), OK);
    let words = ["dma-read", "endpoint=40", "iova=0x5000", "length=2"];
    thread::scope(|scope| {
        let access = scope.spawn(|| program.execute(&words));
        let mut event = None;
        wait_until("a page request", || {
            event = guest.poll_event();
            event.is_some()
        });
        let event = event.expect("an event");
        let group = u16::from_le_bytes([event[24], event[25]]);
        guest.ram.write(BUFFER, &[0xab, 0xcd]);
        assert_eq!(guest.request(&map(1, 0x5000, 0x5fff, BUFFER, READ)), OK);
        assert_eq!(guest.request(&page_response(ENDPOINT, None, group, 0)), OK);
        assert_eq!(access.join().expect("ctl"), Ok(json!({"data": "abcd"})));
    });
    drop(guest);
    stop(program);
}

#[test]
fn one_front_end_follows_another() {
    let program = start();
    for _ in 0..3 {
        let mut guest = program.guest();
        assert_eq!(guest.request(&attach(1, ENDPOINT, 0)), OK);
        let status = program.execute(&["status"]).expect("status");
        assert_eq!(status["connected"], true);
        assert_eq!(status["domains"][0]["id"], 1);
        drop(guest);
        wait_until("the end of the connection", || {
            let status = program.execute(&["status"]).expect("status");
            status["connected"] == false
        });
        let status = program.execute(&["status"]).expect("status");
        assert_eq!(status["domains"], json!([]));
        assert_eq!(status["memory"], json!([]));
    }
    stop(program);
}

#[test]
fn sigterm_ends_it_with_a_guest_and_a_page_request_in_flight() {
    let program = start();
    let mut guest = program.guest();
    guest.post_events(4, EVENT_LEN, false);
    assert_eq!(guest.request(&attach(1, ENDPOINT, ATTACH_PAGE_REQUEST)), OK);
    let mut client = Command::new(env!("CARGO_BIN_EXE_vhost-device-iommu"))
        .arg("ctl")
        .arg(program.path("control"))
        .args(["dma-read", "endpoint=40", "iova=0", "length=1"])
        .stderr(Stdio::null())
        .spawn()
        .expect("ctl starts");
    wait_until("a page request", || guest.poll_event().is_some());
    stop(program);
    assert!(!client.wait().expect("its end").success());
}

/// A command of the control socket and a function wait for a table, and the queues stand still for good.
#[test]
fn sigterm_ends_it_while_tables_are_held() {
    const COPY: u32 = 1 << 5;
    let program = start();
    let mut guest = program.guest();
    // Its entries lead to itself.
    let pages = guest.ram.allocate(4096);
    guest.ram.write(pages, &(pages | 7).to_le_bytes());
    for endpoint in [ENDPOINT, FUNCTION] {
        assert_eq!(guest.request(&attach_table(1, endpoint, 0, 0, pages)), OK);
    }
    let read = ["dma-read", "endpoint=40", "iova=0", "length=8"];
    program.execute(&read).expect("a page");
    guest.stop();
    let mut driver = vfio_user::Client::new(&program.path("pci")).expect("connect");
    driver.region_write(7, 4, &[6, 0]).expect("enable");
    for (register, value) in [(0x0c, 0), (0x14, 0x800), (0x1c, 5), (0x04, COPY)] {
        let bytes = u32::to_le_bytes(value);
        driver.region_write(0, register, &bytes).expect("write");
    }
    let mut control = UnixStream::connect(program.path("control")).expect("connect");
    let commands = concat!(
        r#"{"execute":"dma-read","arguments":{"endpoint":40,"iova":0,"length":8},"id":1}"#,
        "\n",
        r#"{"execute":"translate","arguments":{"endpoint":40,"iova":0},"id":2}"#,
        "\n"
    );
    control.write_all(commands.as_bytes()).expect("commands");
    let mut lines = BufReader::new(control).lines();
    let answer: serde_json::Value =
        serde_json::from_str(&lines.next().expect("a line").expect("a line")).expect("an answer");
    assert_eq!(
        (&answer["id"], &answer["return"]["held"]),
        (&json!(2), &json!(true))
    );
    assert!(program.execute(&["status"]).is_ok());
    stop(program);
    assert!(
        lines.next().is_none_or(|line| line.is_err()),
        "the read has no answer"
    );
}

#[test]
fn endpoints_come_and_go_while_a_guest_runs() {
    let program = start();
    let mut guest = program.guest();
    assert_eq!(
        program.execute(&["endpoint-add", "endpoint=0x40"]),
        Ok(json!({}))
    );
    assert_eq!(guest.request(&attach(2, 0x40, 0)), OK);
    assert_eq!(guest.request(&detach(2, 0x40)), OK);
    assert_eq!(
        program.execute(&["endpoint-remove", "endpoint=0x40"]),
        Ok(json!({}))
    );
    assert_eq!(guest.request(&attach(2, 0x40, 0)), Status::NoEnt as u8);
    drop(guest);
    stop(program);
}

/// BAR 0 of a function: `command`, and its status at the end.
fn command(driver: &mut vfio_user::Client, registers: &[(u64, u32)], command: u32) -> u32 {
    let all = registers
        .iter()
        .copied()
        .chain([(0x08, 0), (0x04, command)]);
    for (register, value) in all {
        let bytes = value.to_le_bytes();
        driver.region_write(0, register, &bytes).expect("write");
    }
    let mut status = [0; 4];
    wait_until("the end of a command", || {
        driver.region_read(0, 0x08, &mut status).expect("read");
        status[0] & 0x40 != 0
    });
    u32::from_le_bytes(status) & !0x40
}

#[test]
fn a_functions_own_dma_goes_where_the_guest_has_mapped_it() {
    const COPY: u32 = 1 << 5;
    const COPY_SUCCESS: u32 = 1 << 4;
    const COPY_FAIL_SOURCE: u32 = 1 << 5 | 1 << 7;
    let program = start();
    let mut guest = program.guest();
    assert_eq!(guest.request(&attach(1, FUNCTION, 0)), OK);
    let mapping = map(1, 0x1000, 0x2fff, BUFFER, READ | WRITE);
    assert_eq!(guest.request(&mapping), OK);
    guest.ram.write(BUFFER, b"hello");
    let registers = [
        (0x0c, 0x1000),
        (0x10, 0),
        (0x14, 0x2000),
        (0x18, 0),
        (0x1c, 5),
    ];
    // Twice: the function serves the next front-end too.
    for _ in 0..2 {
        let mut driver = vfio_user::Client::new(&program.path("pci")).expect("connect");
        driver.region_write(7, 4, &[6, 0]).expect("enable");
        assert_eq!(command(&mut driver, &registers, COPY), COPY_SUCCESS);
        assert_eq!(guest.ram.read_vec(BUFFER + 0x1000, 5), b"hello");
        guest.ram.write(BUFFER + 0x1000, &[0; 5]);
    }
    let mut driver = vfio_user::Client::new(&program.path("pci")).expect("connect");
    driver.region_write(7, 4, &[6, 0]).expect("enable");
    assert_eq!(guest.request(&unmap(1, 0x1000, 0x2fff)), OK);
    assert_eq!(command(&mut driver, &registers, COPY), COPY_FAIL_SOURCE);
    let seen = program
        .execute(&["endpoint", "endpoint=00:06.0"])
        .expect("endpoint");
    assert_eq!(seen["bars"]["0"]["failures"], 1);
    // SIGTERM with a front-end connected and a transfer that waits for the guest.
    assert_eq!(guest.request(&attach(1, FUNCTION, ATTACH_PAGE_REQUEST)), OK);
    guest.post_events(4, EVENT_LEN, false);
    driver
        .region_write(0, 0x04, &COPY.to_le_bytes())
        .expect("start");
    wait_until("a page request", || guest.poll_event().is_some());
    let path = program.path("pci");
    let log = stop(program);
    assert!(!path.exists(), "{log}");
}

/// System calls that only a function makes: it comes and goes with the filter in force.
#[test]
fn functions_come_and_go_under_the_filter() {
    let program = start();
    let path = program.path("other");
    let socket = format!("soft={}", path.display());
    for _ in 0..2 {
        let added = program.execute(&["endpoint-add", "endpoint=0x38", &socket]);
        assert_eq!(added, Ok(json!({})));
        let mut driver = vfio_user::Client::new(&path).expect("connect");
        let mut id = [0; 4];
        driver.region_read(7, 0, &mut id).expect("read");
        assert_eq!(id, 0xb500_104cu32.to_le_bytes());
        driver.reset().expect("reset");
        let removed = program.execute(&["endpoint-remove", "endpoint=0x38"]);
        assert_eq!(removed, Ok(json!({})));
        assert!(!path.exists());
    }
    stop(program);
}

#[test]
fn a_guest_on_an_inherited_connection_is_served_until_it_goes() {
    for nonblocking in [false, true] {
        let (ours, theirs) = UnixStream::pair().expect("a pair");
        theirs.set_nonblocking(nonblocking).expect("nonblocking");
        let options = "--endpoint 0x28 --seccomp kill";
        let mut child = program_on(theirs, options);
        let mut guest = Guest::on(ours, &GuestOptions::default());
        assert_eq!(guest.request(&attach(1, ENDPOINT, 0)), OK);
        drop(guest);
        assert_eq!(child.wait().expect("its end").code(), Some(0));
    }
}

#[test]
fn a_second_front_end_waits_for_the_first_to_go() {
    let program = start();
    let mut first = program.guest();
    let path = program.path("vhost");
    thread::scope(|scope| {
        let second = scope.spawn(|| {
            let mut guest = Guest::connect(&path, &GuestOptions::default());
            guest.request(&attach(2, ENDPOINT, 0))
        });
        assert_eq!(first.request(&attach(1, ENDPOINT, 0)), OK);
        let status = program.execute(&["status"]).expect("status");
        assert_eq!(status["domains"][0]["id"], 1);
        drop(first);
        assert_eq!(second.join().expect("the second"), OK);
    });
    stop(program);
}
