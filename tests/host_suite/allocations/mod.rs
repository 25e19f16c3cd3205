// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The host's memory is short: each allocation that the kernel makes for a thread of the running program fails once,
//! while the program works, with its system call filter on.
//!
//! A test is a [`sweep`]: an operation is repeated with the first allocation of the first thread failing, then with the
//! second, and so on until the thread makes no more, then with the next thread. After each failure the promises of the
//! operation must hold: what was refused has changed nothing, what was acknowledged is so, and the same again succeeds.
//!
//! With `LAB_EXHAUSTIVE=1` every allocation fails. Otherwise it is the first of each thread and a part of the others,
//! which the commit chooses; the output names it, and `LAB_SLICE` sets it.

mod attachments;
mod connections;
mod control;
mod end;
mod mappings;
mod memory;
mod page_requests;
mod slice;

use std::cell::Cell;
use std::collections::BTreeMap;
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use serde_json::{Value, json};
use vhost_device_iommu::spec::{EVENT_LEN, Status};

use crate::common::requests::{self, ATTACH_PAGE_REQUEST, READ, WRITE};
use crate::common::{Guest, wait_until};
use crate::in_memory;
use crate::injection::FailNth;
use crate::program::{ENDPOINT, OTHER, Program};

const MIB: u64 = 1 << 20;
const IOVA: u64 = 0x4000_0000;
const OTHER_IOVA: u64 = 0x5000_0000;
/// Guest memory that no ring is in.
const GPA: u64 = 0x100_0000;
/// The domain of [`ENDPOINT`], which raises page requests.
const DOMAIN: u32 = 1;
/// The domain of [`OTHER`].
const OTHER_DOMAIN: u32 = 2;

const OK: u8 = Status::Ok as u8;
const NOMEM: u8 = Status::NoMem as u8;
const UNSUPP: u8 = Status::Unsupp as u8;
const RANGE: u8 = Status::Range as u8;
const DEVERR: u8 = Status::DevErr as u8;

/// No operation here makes so many allocations.
const MANY: usize = 400;

/// A program at work: each of its two endpoints is in a domain of its own with a mapping of 1 MiB.
struct Bench {
    program: Program,
    guest: Guest,
}

impl Bench {
    fn start() -> Self {
        let program = start_program();
        let guest = program.guest();
        let mut bench = Self { program, guest };
        bench.set_up();
        bench
    }

    /// A new front-end, as the old one's connection has ended.
    fn start_again(&mut self) {
        self.guest = self.program.guest();
        self.set_up();
    }

    fn set_up(&mut self) {
        self.guest.post_events(16, EVENT_LEN, false);
        self.enter_domain();
        assert_eq!(self.request(&requests::attach(OTHER_DOMAIN, OTHER, 0)), OK);
        assert_eq!(self.map(OTHER_DOMAIN, OTHER_IOVA, MIB, GPA + MIB), OK);
        assert!(self.reaches(IOVA, GPA));
    }

    /// Puts [`ENDPOINT`] into [`DOMAIN`], which has ended, and maps.
    fn enter_domain(&mut self) {
        let attach = requests::attach(DOMAIN, ENDPOINT, ATTACH_PAGE_REQUEST);
        assert_eq!(self.request(&attach), OK);
        assert_eq!(self.map(DOMAIN, IOVA, MIB, GPA), OK);
    }

    fn request(&mut self, request: &[u8]) -> u8 {
        self.guest.request(request)
    }

    /// A request that changes nothing by itself: there is no such mapping, or no such domain.
    fn next_request(&mut self) {
        self.unmap(OTHER_DOMAIN, IOVA, MIB);
    }

    fn map(&mut self, domain: u32, iova: u64, length: u64, gpa: u64) -> u8 {
        let last = iova + length - 1;
        self.request(&requests::map(domain, iova, last, gpa, READ | WRITE))
    }

    fn unmap(&mut self, domain: u32, iova: u64, length: u64) -> u8 {
        self.request(&requests::unmap(domain, iova, iova + length - 1))
    }

    /// Whether [`ENDPOINT`] reaches 1 MiB of the guest's memory.
    fn reaches(&self, iova: u64, gpa: u64) -> bool {
        self.program.reaches(ENDPOINT, &self.guest, iova, MIB, gpa)
    }

    /// Whether it reaches no page of it.
    fn reaches_none(&self, iova: u64, gpa: u64) -> bool {
        self.program
            .reaches_none(ENDPOINT, &self.guest, iova, MIB, gpa)
    }

    /// Waits until the program knows that the front-end is gone.
    fn is_disconnected(&self) {
        wait_until("the disconnect", || self.status()["connected"] == false);
    }

    fn status(&self) -> Value {
        self.program.control("status", json!({}))
    }
}

fn start_program() -> Program {
    Program::start_by(in_memory::program_in, &["--page-response-timeout", "0"])
}

/// An allocation that is to fail.
struct Point {
    fail: FailNth,
    nth: usize,
    happened: Cell<bool>,
}

impl Point {
    /// Runs an operation with the allocation failing, if the thread gets there. A thread that ends has got there.
    fn during<T>(&self, operation: impl FnOnce() -> T) -> T {
        let (result, happened) = self.fail.during(self.nth, operation);
        self.happened
            .set(self.happened.get() || happened != Some(false));
        result
    }
}

/// Repeats `step` with each allocation failing once, of each thread of the program. It leaves the bench as it was, and
/// returns what the failure came to, in a word.
fn sweep(what: &str, mut step: impl FnMut(&mut Bench, &Point) -> String) {
    let mut bench = Bench::start();
    let mut points = 0;
    for place in 0..threads(&bench.program).len() {
        let mut outcomes = BTreeMap::<String, usize>::new();
        let mut name = String::new();
        for nth in slice::points() {
            assert!(nth < MANY, "{what}: endless in {name}");
            // Threads of a connection are others when there was a new connection.
            let (thread, now) = threads(&bench.program).swap_remove(place);
            name = now;
            let fail = FailNth::of(bench.program.id(), thread).expect("a thread");
            let happened = Cell::new(false);
            let point = Point {
                fail,
                nth,
                happened,
            };
            let outcome = named(what, &name, nth, || step(&mut bench, &point));
            if !point.happened.get() {
                break;
            }
            points += 1;
            *outcomes.entry(outcome).or_default() += 1;
        }
        println!("{what}: {name}: {outcomes:?}");
    }
    assert!(points > 0, "{what}: no allocation was made to fail");
}

/// Says which failure it was when `step` panics.
fn named<T>(what: &str, thread: &str, nth: usize, step: impl FnOnce() -> T) -> T {
    catch_unwind(AssertUnwindSafe(step)).unwrap_or_else(|panic| {
        println!("{what}: after failure {nth} of thread {thread}");
        resume_unwind(panic)
    })
}

/// The threads of the program and their names, in the order in which they were made.
fn threads(program: &Program) -> Vec<(u32, String)> {
    let directory = format!("/proc/{}/task", program.id());
    let mut threads: Vec<_> = fs::read_dir(&directory)
        .unwrap()
        .filter_map(|entry| {
            let thread = entry.ok()?.file_name().to_str()?.parse::<u32>().ok()?;
            let name = fs::read_to_string(format!("{directory}/{thread}/comm")).ok()?;
            Some((thread, name.trim().to_owned()))
        })
        .collect();
    threads.sort_unstable();
    threads
}

/// The status of a request for which the host's memory was short, in a word.
fn word(status: u8) -> String {
    let word = match status {
        OK => "OK",
        NOMEM => "NOMEM",
        // Steps of iommufd with a failure of their own say EINVAL or ENOENT.
        UNSUPP => "UNSUPP",
        RANGE => "RANGE",
        DEVERR => "DEVERR",
        other => panic!("status {other}"),
    };
    word.to_owned()
}
