// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Front-ends that come, go and misbehave.

use std::fs;
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, mpsc};
use std::thread;

use vfio_user::Client;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::common::{PATIENCE, wait_until};
use crate::harness::{
    COMMAND, CONFIG, DATA_EVENTFD, Driver, Fixture, INTX, MEMORY_AND_MASTER, MSI, MSIX,
    MSIX_CONTROL, TRIGGER, command, reg,
};

const VERSION: u16 = 1;
pub const REGION_READ: u16 = 9;
const REGION_WRITE: u16 = 10;
pub const DEVICE_RESET: u16 = 13;

/// A message: header and payload. `size` is what the header says.
pub fn message(command: u16, size: usize, payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![7, 0];
    bytes.extend(command.to_ne_bytes());
    bytes.extend((size as u32).to_ne_bytes());
    bytes.extend([0; 8]);
    bytes.extend(payload);
    bytes
}

/// Offset, region, count.
pub fn region(offset: u64, region: u32, count: u32) -> Vec<u8> {
    let mut bytes = offset.to_ne_bytes().to_vec();
    bytes.extend(region.to_ne_bytes());
    bytes.extend(count.to_ne_bytes());
    bytes
}

fn connect(fixture: &Fixture) -> UnixStream {
    let stream = UnixStream::connect(&fixture.path).expect("connect");
    stream.set_read_timeout(Some(PATIENCE)).expect("time-out");
    stream
}

/// The error number of the answer.
pub fn answer(stream: &mut UnixStream) -> i32 {
    let mut header = [0; 16];
    stream.read_exact(&mut header).expect("an answer");
    i32::from_ne_bytes(header[12..16].try_into().expect("four bytes"))
}

#[test]
fn a_front_end_comes_back_and_finds_the_function_as_after_power_on() {
    let fixture = Fixture::new();
    for _ in 0..3 {
        let mut driver = fixture.driver();
        assert_eq!(driver.read32(0, reg::SIZE), 0);
        driver.write32(0, reg::SIZE, 77);
    }
}

/// How many descriptors of this process are the eventfd.
fn holders(event: &EventFd) -> usize {
    let id = |fd: &str| {
        let info = fs::read_to_string(format!("/proc/self/fdinfo/{fd}")).ok()?;
        let id = info.lines().find(|line| line.starts_with("eventfd-id:"))?;
        Some(id.to_owned())
    };
    let ours = id(&event.as_raw_fd().to_string()).expect("an eventfd");
    let all = fs::read_dir("/proc/self/fdinfo").expect("descriptors");
    let all = all.filter_map(|entry| id(entry.ok()?.file_name().to_str()?));
    all.filter(|other| *other == ours).count()
}

#[test]
fn descriptors_of_a_front_end_that_is_gone_are_closed() {
    let fixture = Fixture::new();
    let event = EventFd::new(EFD_NONBLOCK).expect("eventfd");
    let mut driver = fixture.driver();
    let flags = TRIGGER | DATA_EVENTFD;
    let fds = [event.as_raw_fd()];
    driver.0.set_irqs(MSIX, flags, 0, 1, &fds).expect("set");
    assert!(holders(&event) > 1);
    drop(driver);
    wait_until("the descriptor is closed", || holders(&event) == 1);
}

/// A write to another kind of descriptor could block.
#[test]
fn only_eventfds_are_taken_for_interrupts_and_others_are_closed() {
    let fixture = Fixture::new();
    let mut driver = fixture.driver();
    for index in [INTX, MSI, MSIX] {
        let (mut ours, theirs) = UnixStream::pair().expect("pair");
        ours.set_read_timeout(Some(PATIENCE)).expect("time-out");
        let fds = [theirs.as_raw_fd()];
        let flags = TRIGGER | DATA_EVENTFD;
        // The library's client does not look at the error of the answer.
        let _ = driver.0.set_irqs(index, flags, 0, 1, &fds);
        drop(theirs);
        assert_eq!(ours.read(&mut [0]).expect("the end"), 0);
    }
    let (_reader, writer) = std::io::pipe().expect("a pipe");
    let fds = [writer.as_raw_fd()];
    let flags = TRIGGER | DATA_EVENTFD;
    let _ = driver.0.set_irqs(MSIX, flags, 0, 1, &fds);
    assert_eq!(
        fixture.endpoint.as_ref().expect("endpoint").describe()["refused"],
        4
    );
    // The connection goes on.
    assert_eq!(driver.read32(CONFIG, 0), 0xb500_104c);
}

/// Both take the locks of all parts of the function. In another order they would wait for each other.
#[test]
fn a_function_is_described_while_it_is_reset() {
    const ROUNDS: usize = 5_000;
    let fixture = Fixture::new();
    let endpoint = Arc::clone(fixture.endpoint.as_ref().expect("endpoint"));
    let (told, ended) = mpsc::channel();
    let describing = told.clone();
    thread::spawn(move || {
        for _ in 0..ROUNDS {
            endpoint.describe();
        }
        describing.send(()).expect("somebody waits");
    });
    let mut driver = fixture.driver();
    thread::spawn(move || {
        for _ in 0..ROUNDS {
            driver.0.reset().expect("reset");
        }
        told.send(()).expect("somebody waits");
    });
    for _ in 0..2 {
        ended.recv_timeout(PATIENCE).expect("both go on");
    }
}

/// A front-end fills the counter of an eventfd that blocks, and never reads it.
#[test]
fn an_interrupt_that_blocks_holds_up_neither_registers_nor_resets_nor_the_end() {
    let mut fixture = Fixture::new();
    let mut driver = fixture.driver();
    let event = EventFd::new(0).expect("eventfd");
    event.write(u64::MAX - 1).expect("room");
    let flags = TRIGGER | DATA_EVENTFD;
    let fds = [event.as_raw_fd()];
    driver.0.set_irqs(MSIX, flags, 0, 1, &fds).expect("set");
    driver.write_config(MSIX_CONTROL, 1 << 15);
    let raise = |driver: &mut Driver| {
        driver.write32(0, reg::IRQ_TYPE, MSIX);
        driver.write32(0, reg::IRQ_NUMBER, 1);
        driver.write32(0, reg::COMMAND, command::RAISE_MSIX);
        wait_until("the status", || driver.read32(0, reg::STATUS) != 0);
    };
    raise(&mut driver);
    let endpoint = fixture.endpoint.as_ref().expect("endpoint");
    assert_eq!(endpoint.describe()["bars"]["0"]["busy"], true, "it blocks");
    driver.0.reset().expect("reset");
    assert_eq!(endpoint.describe()["bars"]["0"]["busy"], false);
    // The connection's own thread: it signals what is pending when the function is unmasked.
    driver.write_config(COMMAND, MEMORY_AND_MASTER);
    driver.write_config(MSIX_CONTROL, 3 << 14);
    raise(&mut driver);
    assert_eq!(endpoint.describe()["interrupts"]["pending"], 1);
    let unmask = (1_u16 << 15).to_ne_bytes();
    let unmasking = thread::spawn(move || {
        // Answered or not: the function ends.
        let _ = driver.0.region_write(CONFIG, MSIX_CONTROL, &unmask);
    });
    wait_until("the decision to interrupt", || {
        endpoint.describe()["interrupts"]["pending"] == 0
    });
    fixture.endpoint = None;
    assert!(!fixture.path.exists());
    unmasking.join().expect("no panic");
}

#[test]
fn a_second_front_end_waits_for_the_first_to_go() {
    let fixture = Fixture::new();
    let mut first = fixture.driver();
    first.write32(0, reg::SIZE, 5);
    thread::scope(|scope| {
        let second = scope.spawn(|| fixture.driver().read32(0, reg::SIZE));
        for _ in 0..100 {
            assert_eq!(first.read32(0, reg::SIZE), 5);
        }
        assert!(!second.is_finished());
        drop(first);
        assert_eq!(second.join().expect("thread"), 0);
    });
}

/// Each would end the library's thread, or make it allocate what the peer says, or read data as commands.
#[test]
fn malformed_messages_end_the_connection_and_nothing_else() {
    let fixture = Fixture::new();
    let version = |data: &[u8]| {
        let payload = [&[0; 4], data].concat();
        message(VERSION, 16 + payload.len(), &payload)
    };
    let cases: Vec<(&str, Vec<u8>)> = vec![
        ("a size below the header's", message(DEVICE_RESET, 15, &[])),
        ("no size", message(DEVICE_RESET, 0, &[])),
        (
            "a size of 4 GiB",
            message(
                REGION_WRITE,
                u32::MAX as usize,
                &region(0, 0, u32::MAX - 32),
            ),
        ),
        ("a version without data", version(b"")),
        ("a version without text", message(VERSION, 20, &[0; 4])),
        ("a version without an end", version(b"{}")),
        ("a version with two ends", version(b"{}\0{}\0")),
        ("a version that is cut off", message(VERSION, 18, &[0; 2])),
        ("a long version", version(&[b'x'; 1 << 16])),
        (
            "a read of 4 GiB",
            message(REGION_READ, 32, &region(0, 0, u32::MAX)),
        ),
        (
            "a write of another length",
            message(REGION_WRITE, 36, &[region(0, 0, 8), vec![0; 4]].concat()),
        ),
        ("a short command", message(8, 20, &[0; 4])),
        ("a long command", message(DEVICE_RESET, 20, &[0; 4])),
    ];
    for (what, bytes) in cases {
        let mut stream = connect(&fixture);
        stream.write_all(&bytes).expect("send");
        let mut rest = Vec::new();
        // A reset instead of the end, when bytes were left unread.
        let _ = stream.read_to_end(&mut rest);
        assert!(rest.is_empty(), "{what}");
        assert_eq!(fixture.driver().read32(CONFIG, 0), 0xb500_104c, "{what}");
    }
}

#[test]
fn what_cannot_be_done_is_answered_with_an_error_and_the_connection_goes_on() {
    let fixture = Fixture::new();
    let mut stream = connect(&fixture);
    let irqs = |index: u32, flags: u32, start: u32, count: u32| {
        let fields = [20, flags, index, start, count];
        message(8, 36, &fields.map(u32::to_ne_bytes).concat())
    };
    for (what, bytes) in [
        ("an unknown command", message(99, 24, &[0; 8])),
        (
            "a command that is not supported",
            message(12, 32, &[0xff; 16]),
        ),
        ("JSON that is none", message(VERSION, 22, b"\0\0\0\0{\0")),
        (
            "JSON that is deep",
            message(VERSION, 1021, &[&[0; 4][..], &[b'['; 1000], &[0]].concat()),
        ),
        (
            "a region that is not there",
            message(REGION_READ, 32, &region(0, 99, 4)),
        ),
        (
            "a BAR that is not there",
            message(REGION_READ, 32, &region(0, 5, 4)),
        ),
        (
            "beyond a BAR",
            message(REGION_READ, 32, &region(0x3ffd, 0, 4)),
        ),
        (
            "beyond all addresses",
            message(REGION_READ, 32, &region(u64::MAX, 7, 4)),
        ),
        (
            "beyond configuration space",
            message(REGION_WRITE, 36, &[region(4094, 7, 4), vec![0; 4]].concat()),
        ),
        ("an interrupt that is not there", irqs(9, 0x21, 0, 0)),
        ("a vector that is not there", irqs(2, 0x24, 32, 1)),
        ("vectors that wrap", irqs(2, 0x24, u32::MAX, u32::MAX)),
        ("an action that is none", irqs(2, 0x01, 0, 1)),
        ("data that is not supported", irqs(2, 0x22, 0, 0)),
    ] {
        stream.write_all(&bytes).expect("send");
        assert_eq!(answer(&mut stream), libc::EINVAL, "{what}");
    }
    stream
        .write_all(&message(DEVICE_RESET, 16, &[]))
        .expect("send");
    assert_eq!(answer(&mut stream), 0);
}

/// vfio-user: the capabilities in version data are optional.
#[test]
fn a_version_may_name_no_capabilities() {
    let fixture = Fixture::new();
    for data in [
        &b"{}\0"[..],
        b"{ }\0",
        b"{\"other\":[1,2]}\0",
        b"{\"capabilities\":{}}\0",
    ] {
        let mut stream = connect(&fixture);
        let payload = [&[0; 4], data].concat();
        stream
            .write_all(&message(VERSION, 16 + payload.len(), &payload))
            .expect("send");
        let mut header = [0; 16];
        stream.read_exact(&mut header).expect("an answer");
        let [size, flags, error] =
            [4, 8, 12].map(|at| u32::from_ne_bytes(header[at..at + 4].try_into().expect("four")));
        assert_eq!((flags, error), (1, 0), "a reply, and no error");
        let mut rest = vec![0; size as usize - 16];
        stream.read_exact(&mut rest).expect("the rest");
        assert!(String::from_utf8_lossy(&rest[4..]).contains("max_msg_fds"));
        stream
            .write_all(&message(DEVICE_RESET, 16, &[]))
            .expect("send");
        assert_eq!(answer(&mut stream), 0);
    }
}

#[test]
fn messages_that_come_byte_by_byte_are_understood() {
    let fixture = Fixture::new();
    let mut stream = connect(&fixture);
    for byte in message(REGION_READ, 32, &region(0, 7, 4)) {
        stream.write_all(&[byte]).expect("send");
    }
    let mut reply = [0; 36];
    stream.read_exact(&mut reply).expect("an answer");
    assert_eq!(reply[32..], 0xb500_104cu32.to_le_bytes());
}

#[test]
fn the_socket_file_goes_with_the_function_and_the_connection_too() {
    let mut fixture = Fixture::new();
    let mut stream = connect(&fixture);
    // Connected for sure, not only in the backlog.
    stream
        .write_all(&message(DEVICE_RESET, 16, &[]))
        .expect("send");
    assert_eq!(answer(&mut stream), 0);
    fixture.endpoint = None;
    assert!(!fixture.path.exists());
    assert_eq!(stream.read(&mut [0]).expect("the end"), 0);
    assert!(Client::new(&fixture.path).is_err());
}

#[test]
fn what_there_is_to_see_can_be_seen() {
    let fixture = Fixture::new();
    let mut driver = fixture.driver();
    driver.write32(0, reg::SIZE, 9);
    let seen = fixture.endpoint.as_ref().expect("endpoint").describe();
    assert_eq!(seen["connected"], true);
    assert_eq!(seen["enabled"], serde_json::json!(["bus_master"]));
    assert_eq!(seen["bars"]["0"]["registers"]["size"], 9);
}
