// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The program as a process: what it says of a front-end's set-up, and what becomes of a connection when the system lacks
//! something. With the system call filter on.

use std::ffi::OsStr;
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::net::{UnixListener, UnixStream};

use rustix::process::{Pid, Resource, Rlimit, getrlimit, prlimit};
use serde_json::Value;
use vhost::vhost_user::message::VhostUserProtocolFeatures;
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::{VhostBackend, VringConfigData};
use vmm_sys_util::eventfd::EventFd;

use crate::OK;
use crate::common::guest::{EVENTS, PROTOCOL_FEATURES, REQUESTS, VERSION_1};
use crate::common::requests::attach;
use crate::common::{
    Guest, GuestOptions, Layout, PATIENCE, Program, Segment, binary, program_on, wait_until,
};

const ENDPOINT: u32 = 8;

fn start() -> Program {
    Program::start(&["--endpoint", "8", "--seccomp", "kill"])
}

/// Ends it as an operator does; its log.
fn stop(mut program: Program) -> String {
    let (code, log) = program.end_by("-TERM");
    assert_eq!(code, Some(0), "{log}");
    log
}

fn works(program: &Program) {
    assert_eq!(program.guest().request(&attach(1, ENDPOINT, 0)), OK);
}

fn prepare(program: &Program) -> Guest {
    let stream = UnixStream::connect(program.path("vhost")).expect("a connection");
    Guest::prepare(stream, &GuestOptions::default())
}

#[test]
fn a_front_end_that_shares_no_memory_is_told_to() {
    let program = start();
    let guest = prepare(&program);
    let ring = VringConfigData {
        queue_max_size: 64,
        queue_size: 64,
        flags: 0,
        desc_table_addr: 0x1000,
        used_ring_addr: 0x2000,
        avail_ring_addr: 0x3000,
        log_addr: None,
    };
    guest
        .frontend
        .set_vring_addr(REQUESTS, &ring)
        .expect_err("no memory");
    program.wait_for_line(&["shares no guest memory"]);
    // And with a part of it that is private.
    let guest = prepare(&program);
    guest.send_memory();
    guest
        .frontend
        .set_vring_addr(EVENTS, &ring)
        .expect_err("not in shared memory");
    let line = program.wait_for_line(&["does not share"]);
    for part in ["queue 1", "0x1000", "0x10000-0x200ffff", "share=on"] {
        assert!(line.contains(part), "{part}: {line}");
    }
    // And with a request in such a part.
    let mut guest = program.guest();
    let queue = &mut guest.queues[REQUESTS];
    queue.push(&[Segment::writable(0x8000_0000, 4)], Layout::Direct);
    queue.submit();
    assert_eq!(queue.wait().1, 0, "unwritten");
    let line = program.wait_for_line(&["goes back unwritten"]);
    assert!(
        line.contains("0x80000000") && line.contains("share=on"),
        "{line}"
    );
    drop(guest);
    works(&program);
    stop(program);
}

#[test]
fn a_front_end_without_config_is_told_what_to_set() {
    let program = start();
    let stream = UnixStream::connect(program.path("vhost")).expect("a connection");
    let mut frontend = Frontend::from_stream(stream, 2);
    frontend.set_owner().expect("SET_OWNER");
    frontend.get_features().expect("GET_FEATURES");
    frontend
        .set_features(VERSION_1 | PROTOCOL_FEATURES)
        .expect("SET_FEATURES");
    frontend
        .get_protocol_features()
        .expect("GET_PROTOCOL_FEATURES");
    frontend
        .set_protocol_features(VhostUserProtocolFeatures::REPLY_ACK)
        .expect("SET_PROTOCOL_FEATURES");
    program.wait_for_line(&["config_size=40"]);
    stop(program);
}

#[test]
fn a_front_end_with_one_queue_is_told_to_have_two() {
    let program = start();
    let guest = prepare(&program);
    let call = EventFd::new(0).expect("an eventfd");
    guest
        .frontend
        .set_vring_call(REQUESTS, &call)
        .expect("SET_VRING_CALL");
    program.wait_for_line(&["num_vqs=2"]);
    drop(guest);
    works(&program);
    let log = stop(program);
    assert!(!log.contains("num_vqs"), "once, and for that one: {log}");
}

#[test]
fn a_kick_that_is_no_eventfd_is_refused_with_a_line() {
    let program = start();
    let guest = prepare(&program);
    let (_reader, writer) = std::io::pipe().expect("a pipe");
    // SAFETY: the pipe gives its descriptor up.
    let writer = unsafe {
        use std::os::fd::{FromRawFd, IntoRawFd, OwnedFd};
        EventFd::from_raw_fd(OwnedFd::from(writer).into_raw_fd())
    };
    guest
        .frontend
        .set_vring_call(REQUESTS, &writer)
        .expect_err("a pipe");
    program.wait_for_line(&["an eventfd is needed"]);
    works(&program);
    stop(program);
}

#[test]
fn sigterm_ends_it_while_a_notification_blocks() {
    for queue in [REQUESTS, EVENTS] {
        let program = start();
        let mut guest = program.guest();
        let call = EventFd::new(0).expect("an eventfd");
        call.write(u64::MAX - 1).expect("room");
        guest
            .frontend
            .set_vring_call(queue, &call)
            .expect("an eventfd");
        guest.queues[queue].want_interrupts(true);
        guest.post_events(1, 32, true);
        assert_eq!(guest.request(&attach(1, ENDPOINT, 0)), OK);
        let access = program.execute(&["dma-read", "endpoint=8", "iova=0x7000", "length=4"]);
        access.expect_err("not mapped");
        if queue == EVENTS {
            assert_eq!(guest.fault().address.get(), 0x7000);
        }
        stop(program);
    }
}

#[test]
fn sigterm_ends_it_in_the_middle_of_a_message() {
    let program = start();
    let mut stream = UnixStream::connect(program.path("vhost")).expect("a connection");
    program.wait_for_line(&["a front-end is connected"]);
    // The header of GET_CONFIG, and no body.
    let words = [24_u32, 1, 64].map(u32::to_ne_bytes).concat();
    std::io::Write::write_all(&mut stream, &words).expect("room");
    stop(program);
}

#[test]
fn sigterm_ends_it_while_a_front_end_reads_no_answers() {
    let program = start();
    let mut stream = UnixStream::connect(program.path("vhost")).expect("a connection");
    program.wait_for_line(&["a front-end is connected"]);
    stream.set_nonblocking(true).expect("a socket");
    // GET_FEATURES, until neither side takes more for a while.
    let message = [1_u32, 1, 0].map(u32::to_ne_bytes).concat();
    let mut full = 0;
    while full < 1000 {
        match std::io::Write::write(&mut stream, &message) {
            Ok(_) => full = 0,
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                full += 1;
                std::thread::yield_now();
            }
            Err(error) => panic!("the connection ended: {error}"),
        }
    }
    stop(program);
}

#[test]
fn sigterm_ends_it_while_another_process_accepts_from_the_same_socket() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("socket");
    let listener = UnixListener::bind(&path).expect("a socket");
    let ours = listener.try_clone().expect("a duplicate");
    let mut child = program_on(listener, "--endpoint 8");
    // Served, so it waits for more.
    let mut guest = Guest::connect(&path, &GuestOptions::default());
    assert_eq!(guest.request(&attach(1, ENDPOINT, 0)), OK);
    drop(guest);
    for _ in 0..200 {
        let _stream = UnixStream::connect(&path).expect("a connection");
        // Whoever is faster.
        let _ = ours.accept();
    }
    let kill = std::process::Command::new("kill")
        .args(["-TERM", &child.id().to_string()])
        .status();
    assert!(kill.expect("kill").success());
    assert_eq!(child.wait().expect("its end").code(), Some(0));
}

#[test]
fn a_connected_socket_may_be_non_blocking() {
    let (ours, theirs) = UnixStream::pair().expect("sockets");
    theirs.set_nonblocking(true).expect("a socket");
    let mut child = program_on(theirs, "--endpoint 8 --seccomp kill");
    let mut guest = Guest::on(ours, &GuestOptions::default());
    assert_eq!(guest.request(&attach(1, ENDPOINT, 0)), OK);
    drop(guest);
    assert_eq!(child.wait().expect("its end").code(), Some(0));
}

fn pid(program: &Program) -> Pid {
    Pid::from_raw(program.id() as i32).expect("a process")
}

fn limit(program: &Program, resource: Resource, current: Option<u64>) {
    let maximum = getrlimit(resource).maximum;
    let new = Rlimit { current, maximum };
    prlimit(Some(pid(program)), resource, new).expect("prlimit");
}

/// What a front-end does until its first request is answered. An error, not a panic, where the connection ends.
fn attempt(stream: UnixStream) -> Result<(), String> {
    let attempt = std::thread::Builder::new()
        .name("attempt".into())
        .spawn(|| {
            let mut guest = Guest::on(stream, &GuestOptions::default());
            assert_eq!(guest.request(&attach(1, ENDPOINT, 0)), OK);
        })
        .expect("a thread");
    attempt.join().map_err(|_| "the connection ended".into())
}

/// The descriptors that it has open.
fn descriptors(program: &Program) -> Vec<u64> {
    std::fs::read_dir(format!("/proc/{}/fd", program.id()))
        .expect("descriptors")
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .collect()
}

#[test]
fn a_want_of_descriptors_at_any_step_costs_one_connection() {
    let program = start();
    let all = getrlimit(Resource::Nofile).current;
    works(&program);
    program.wait_for_line(&["is gone"]);
    let idle = descriptors(&program);
    let mut steps = 0;
    // Room for no descriptor more, for one, for two, ...
    for number in (0..).filter(|number| !idle.contains(number)) {
        limit(&program, Resource::Nofile, Some(number));
        let stream = UnixStream::connect(program.path("vhost")).expect("a connection");
        let (refused, served) = std::thread::scope(|scope| {
            let attempt = scope.spawn(|| attempt(stream));
            let line = program.wait_for_line(&["is refused", "is connected"]);
            let refused = line.contains("is refused");
            if refused {
                // It may wait in the backlog still.
                limit(&program, Resource::Nofile, all);
            }
            (refused, attempt.join().expect("no panic of this thread"))
        });
        limit(&program, Resource::Nofile, all);
        works(&program);
        if !refused && served.is_ok() {
            break;
        }
        steps += 1;
        wait_until("the descriptors to be given back", || {
            descriptors(&program).len() == idle.len()
        });
        program.forget_lines();
    }
    assert!((5..64).contains(&steps), "{steps} steps");
    stop(program);
}

/// A client of its control socket, connected.
struct Client(BufReader<UnixStream>);

impl Client {
    fn new(program: &Program) -> Self {
        let stream = UnixStream::connect(program.path("control")).expect("a connection");
        stream.set_read_timeout(Some(PATIENCE)).expect("a socket");
        Self(BufReader::new(stream))
    }

    fn reattach(&mut self) -> Value {
        let line = b"{\"execute\":\"reattach\"}\n";
        self.0.get_mut().write_all(line).expect("room");
        let mut answer = String::new();
        self.0.read_line(&mut answer).expect("an answer");
        serde_json::from_str(&answer).expect("JSON")
    }
}

#[test]
fn a_reattachment_leaves_nothing_behind() {
    let program = start();
    let mut guest = program.guest();
    assert_eq!(guest.request(&attach(1, ENDPOINT, 0)), OK);
    let answer = program.execute(&["reattach"]).expect("reattached");
    let messages = answer["messages"].as_u64().expect("a number");
    guest.config();
    let mut client = Client::new(&program);
    client.reattach();
    let threads_before = threads(&program).len();
    let before = descriptors(&program).len();
    for _ in 0..200 {
        let answer = client.reattach();
        assert!(answer["return"]["paused_us"].is_u64(), "{answer}");
        assert_eq!(answer["return"]["messages"], messages + 1);
        assert_eq!(guest.request(&attach(1, ENDPOINT, 0)), OK);
    }
    wait_until("descriptors and threads to be given back", || {
        descriptors(&program).len() == before && threads(&program).len() == threads_before
    });
    program.forget_lines();
    drop(guest);
    program.wait_for_line(&["is gone"]);
    stop(program);
}

#[test]
fn the_front_end_of_a_connected_socket_is_reattached_too() {
    let directory = tempfile::tempdir().expect("a directory");
    let control = directory.path().join("control");
    let (ours, theirs) = UnixStream::pair().expect("sockets");
    let options = format!(
        "--endpoint 8 --seccomp kill --control {}",
        control.display()
    );
    let mut child = program_on(theirs, &options);
    let mut guest = Guest::on(ours, &GuestOptions::default());
    for _ in 0..3 {
        let output = std::process::Command::new(binary())
            .args([
                OsStr::new("ctl"),
                control.as_os_str(),
                OsStr::new("reattach"),
            ])
            .output();
        assert!(output.expect("ctl starts").status.success());
        assert_eq!(guest.request(&attach(1, ENDPOINT, 0)), OK);
    }
    drop(guest);
    assert_eq!(child.wait().expect("its end").code(), Some(0));
}

#[test]
fn a_want_of_descriptors_at_any_step_leaves_a_front_end_as_it_was() {
    let program = start();
    let all = getrlimit(Resource::Nofile).current;
    let mut guest = program.guest();
    let mut client = Client::new(&program);
    assert_eq!(guest.request(&attach(1, ENDPOINT, 0)), OK);
    client.reattach();
    let mut steps = 0;
    let before = descriptors(&program);
    // Room for no descriptor more, for one, for two, ...
    for number in (0..).filter(|number| !before.contains(number)) {
        limit(&program, Resource::Nofile, Some(number));
        let answer = client.reattach();
        limit(&program, Resource::Nofile, all);
        assert_eq!(guest.request(&attach(1, ENDPOINT, 0)), OK);
        if answer.get("return").is_some() {
            break;
        }
        assert_eq!(answer["error"]["class"], "TryAgain");
        let text = answer["error"]["desc"].as_str().expect("text");
        assert!(text.starts_with("nothing has changed: "), "{text}");
        steps += 1;
        wait_until("the descriptors to be given back", || {
            descriptors(&program).len() == before.len()
        });
    }
    assert!((5..64).contains(&steps), "{steps} steps");
    stop(program);
}

/// The names of its threads.
fn threads(program: &Program) -> Vec<String> {
    std::fs::read_dir(format!("/proc/{}/task", program.id()))
        .expect("threads")
        .filter_map(|task| std::fs::read_to_string(task.ok()?.path().join("comm")).ok())
        .map(|name| name.trim().to_owned())
        .collect()
}

#[test]
fn a_want_of_threads_costs_one_connection() {
    // Address space for no stack of a thread, and for one.
    for more in [1 << 20, 3 << 20] {
        let program = start();
        // The last thread of the start.
        wait_until("the fault worker", || {
            threads(&program).contains(&"fault worker".to_owned())
        });
        let statm = format!("/proc/{}/statm", program.id());
        let pages = std::fs::read_to_string(statm).expect("statm");
        let pages: u64 = pages
            .split(' ')
            .next()
            .and_then(|pages| pages.parse().ok())
            .expect("a number");
        let size = pages * rustix::param::page_size() as u64;
        limit(&program, Resource::As, Some(size + more));
        let stream = UnixStream::connect(program.path("vhost")).expect("a connection");
        let line = program.wait_for_line(&["is refused", "is connected"]);
        assert!(line.contains("is refused"), "{line}");
        limit(&program, Resource::As, None);
        drop(stream);
        works(&program);
        stop(program);
    }
}
