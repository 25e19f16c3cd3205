// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The thread, with a QEMU made of a socket.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::Instant;

use super::*;
use crate::device::DeviceConfig;
use crate::endpoints::EndpointSpec;
use crate::endpoints::host::AnyHost;
use crate::host::soft::SoftHost;
use crate::spec::EndpointId;

const ENDPOINT: EndpointId = EndpointId(0x28);
const GREETING: &str = r#"{"QMP": {"version": {"qemu": {"micro": 0, "minor": 1, "major": 11}, "package": ""}, "capabilities": []}}"#;

/// An endpoint that is `dev0` in QEMU.
fn dev0() -> EndpointSpec {
    format!("{ENDPOINT},qemu-id=dev0").parse().unwrap()
}

/// A device with an endpoint that is `dev0` in QEMU, the thread, and the socket it connects to.
struct Bench {
    context: Context,
    listener: UnixListener,
    stop: EventFd,
    thread: Option<Qmp>,
    _directory: tempfile::TempDir,
}

impl Bench {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(directory.path().join("qmp")).unwrap();
        Self::on(listener, directory)
    }

    /// On the socket `qmp` in a directory.
    fn on(listener: UnixListener, directory: tempfile::TempDir) -> Self {
        let path = directory.path().join("qmp");
        let host = AnyHost::Soft(Arc::new(SoftHost::new().unwrap()), Arc::default());
        let endpoints = Endpoints::new(host, DeviceConfig::default(), [(dev0(), None)]).unwrap();
        let context = Context {
            endpoints: Arc::new(endpoints),
            driver_life: Arc::default(),
        };
        let stop = EventFd::new(0).unwrap();
        let thread = Some(Qmp::start(path, context.clone(), &stop).unwrap());
        Self {
            context,
            listener,
            stop,
            thread,
            _directory: directory,
        }
    }

    /// Waits for its connection.
    fn accept(&self) -> Monitor {
        Monitor(BufReader::new(self.listener.accept().unwrap().0))
    }

    /// Waits for its connection, and greets it as QEMU does.
    fn greeted(&self) -> Monitor {
        let mut monitor = self.accept();
        monitor.say(GREETING);
        monitor.expect("qmp_capabilities");
        monitor.say(r#"{"return": {}}"#);
        monitor.expect("query-status");
        monitor.state("running");
        monitor
    }

    /// A driver comes, and its queues stop.
    fn run_driver(&self) {
        self.context.driver_life.driver_comes();
        self.context.driver_life.queues_stopped();
    }

    /// Whether nobody has told yet whether the last stop is a pause.
    fn has_undecided_stop(&self) -> bool {
        self.context.driver_life.undecided_stop().is_some()
    }

    fn has_endpoint(&self) -> bool {
        !self
            .context
            .endpoints
            .device()
            .status()
            .endpoints
            .is_empty()
    }

    fn wait_for(&self, condition: impl Fn() -> bool) {
        let deadline = Instant::now() + Duration::from_secs(30);
        while !condition() {
            assert!(Instant::now() < deadline, "it does not happen");
            thread::yield_now();
        }
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        self.stop.write(1).unwrap();
        if let Some(thread) = self.thread.take() {
            thread.join();
        }
    }
}

/// QEMU's side of a connection.
struct Monitor(BufReader<UnixStream>);

impl Monitor {
    fn say(&mut self, line: &str) {
        write!(self.0.get_mut(), "{line}\r\n").unwrap();
    }

    /// The answer to a question for the machine's state.
    fn state(&mut self, status: &str) {
        let running = status == "running";
        self.say(&format!(
            r#"{{"return": {{"status": "{status}", "running": {running}}}}}"#
        ));
    }

    fn event(&mut self, name: &str, data: &str) {
        // QEMU's clock is far behind.
        self.say(&format!(
            r#"{{"timestamp": {{"seconds": 1, "microseconds": 2}}, "event": "{name}", "data": {data}}}"#
        ));
    }

    fn deleted(&mut self, id: &str) {
        let data = format!(r#"{{"device": "{id}", "path": "/machine/peripheral/{id}"}}"#);
        self.event("DEVICE_DELETED", &data);
    }

    fn reset(&mut self) {
        let data = r#"{"guest": false, "reason": "host-qmp-system-reset"}"#;
        self.event("RESET", data);
    }

    /// Waits for a command: its `id`.
    fn expect(&mut self, name: &str) -> serde_json::Value {
        let mut line = String::new();
        self.0.read_line(&mut line).unwrap();
        let command: serde_json::Value = serde_json::from_str(&line).unwrap();
        assert_eq!(command["execute"], name);
        command["id"].clone()
    }

    /// Waits for the question about `dev0`, and answers that it is there.
    fn expect_question(&mut self) -> String {
        let id = self.expect("qom-get");
        format!(r#"{{"return": "vfio-user-pci", "id": {id}}}"#)
    }

    /// Waits until the thread has closed the connection.
    fn expect_end(&mut self) {
        let mut line = String::new();
        // A reset of the connection, where something was left unread.
        let count = self.0.read_line(&mut line).unwrap_or(0);
        assert_eq!(count, 0, "{line}");
    }
}

#[test]
fn an_unplugged_device_takes_its_endpoint_along() {
    let bench = Bench::new();
    let mut monitor = bench.greeted();
    monitor.deleted("another");
    monitor.event("STOP", "{}");
    assert!(bench.has_endpoint());
    monitor.deleted("dev0");
    bench.wait_for(|| !bench.has_endpoint());
    // The same again finds nothing, and the thread goes on.
    monitor.deleted("dev0");
    monitor.reset();
    bench.wait_for(|| bench.context.endpoints.device().counters().resets.get() == 1);
}

#[test]
fn a_late_deletion_does_not_take_the_endpoint_that_came_since() {
    let bench = Bench::new();
    let mut monitor = bench.greeted();
    let endpoints = &bench.context.endpoints;
    // The operator has heard of the deletion over another connection, and is faster.
    endpoints.remove(ENDPOINT).unwrap();
    endpoints.add(&dev0(), None).unwrap();
    let answer = monitor.expect_question();
    monitor.deleted("dev0");
    monitor.say(&answer);
    // The question is answered when the next one comes.
    let other: EndpointSpec = "9,qemu-id=dev9".parse().unwrap();
    endpoints.add(&other, None).unwrap();
    monitor.expect_question();
    assert_eq!(endpoints.device().status().endpoints.len(), 2);
    // From here on it is the new one that QEMU means.
    monitor.deleted("dev0");
    bench.wait_for(|| endpoints.device().status().endpoints.len() == 1);
}

#[test]
fn a_device_can_come_back_under_its_name_and_be_unplugged_again() {
    let bench = Bench::new();
    let mut monitor = bench.greeted();
    let endpoints = &bench.context.endpoints;
    for _ in 0..20 {
        monitor.deleted("dev0");
        bench.wait_for(|| !bench.has_endpoint());
        endpoints.add(&dev0(), None).unwrap();
        let answer = monitor.expect_question();
        monitor.say(&answer);
    }
}

#[test]
fn a_reset_of_the_machine_resets_the_device_while_no_driver_is_there() {
    let bench = Bench::new();
    let mut monitor = bench.greeted();
    let device = bench.context.endpoints.device();
    device.write_config(36, &[0]);
    monitor.reset();
    bench.wait_for(|| device.counters().resets.get() == 1);
    // As at start: a device reset alone would have kept it.
    assert_eq!(device.config_space()[36], 1);
}

#[test]
fn another_connection_is_made_when_one_is_lost() {
    let bench = Bench::new();
    drop(bench.greeted());
    drop(bench.accept());
    let mut monitor = bench.greeted();
    monitor.deleted("dev0");
    bench.wait_for(|| !bench.has_endpoint());
}

#[test]
fn queues_that_stop_while_the_machine_runs_are_a_drivers_end() {
    let bench = Bench::new();
    let mut monitor = bench.greeted();
    let device = bench.context.endpoints.device();
    for _ in 0..2 {
        bench.run_driver();
        assert!(bench.has_undecided_stop());
        monitor.expect("query-status");
        monitor.state("running");
        bench.wait_for(|| !bench.has_undecided_stop());
    }
    // What is reset is so for the next one.
    assert_eq!(device.counters().resets.get(), 0);
    // And with the machine.
    monitor.reset();
    bench.wait_for(|| device.counters().resets.get() == 1);
}

#[test]
fn queues_that_stop_with_the_machine_are_a_pause_until_it_goes_on() {
    let bench = Bench::new();
    let mut monitor = bench.greeted();
    bench.run_driver();
    monitor.expect("query-status");
    monitor.event("STOP", "{}");
    monitor.state("paused");
    // QEMU starts the queues before it says more.
    bench.context.driver_life.driver_comes();
    monitor.event("RESUME", "{}");
    bench.context.driver_life.queues_stopped();
    monitor.expect("query-status");
    monitor.state("paused");
    assert!(bench.has_undecided_stop());
    // The driver ended before the pause, and does not come back with its end.
    monitor.event("RESUME", "{}");
    monitor.expect("query-status");
    monitor.state("running");
    bench.wait_for(|| !bench.has_undecided_stop());
}

#[test]
fn an_answer_from_before_the_stop_says_nothing() {
    let bench = Bench::new();
    let mut monitor = bench.accept();
    monitor.say(GREETING);
    monitor.expect("qmp_capabilities");
    monitor.say(r#"{"return": {}}"#);
    monitor.expect("query-status");
    bench.run_driver();
    monitor.state("running");
    // It asks again.
    monitor.expect("query-status");
    assert!(bench.has_undecided_stop());
    monitor.state("running");
    bench.wait_for(|| !bench.has_undecided_stop());
}

#[test]
fn a_drivers_end_that_was_not_heard_of_is_found_at_the_next_connection() {
    let bench = Bench::new();
    let device = bench.context.endpoints.device();
    device.connect();
    drop(bench.greeted());
    bench.run_driver();
    let mut monitor = bench.greeted();
    bench.wait_for(|| !bench.has_undecided_stop());
    // What refuses to tell its state is listened to all the same.
    bench.run_driver();
    monitor.expect("query-status");
    monitor.say(r#"{"error": {"class": "CommandNotFound", "desc": "no"}}"#);
    monitor.deleted("dev0");
    bench.wait_for(|| !bench.has_endpoint());
    assert!(bench.has_undecided_stop());
}

#[test]
fn what_does_not_speak_qmp_is_left() {
    let bench = Bench::new();
    for line in [
        "220 mail.example ESMTP",
        r#"{"return": {}}"#,
        r#"{"QMP": {"version": 11}}"#,
    ] {
        let mut other = bench.accept();
        other.say(line);
        other.expect_end();
    }
    let mut refusing = bench.accept();
    refusing.say(GREETING);
    refusing.expect("qmp_capabilities");
    refusing.say(r#"{"error": {"class": "GenericError", "desc": "no"}}"#);
    refusing.expect_end();
    let mut endless = bench.accept();
    // The thread leaves before all is written.
    let _ = endless.0.get_mut().write_all(&vec![b'x'; 2 << 20]);
    endless.expect_end();
    bench.greeted();
    assert!(bench.has_endpoint());
}

#[test]
fn the_end_of_the_process_does_not_wait_for_qemu() {
    // Connected, and nobody greets.
    let bench = Bench::new();
    let _silent = bench.accept();
    drop(bench);
}

/// A monitor with its one client, and as many more as its queue takes.
fn full_monitor(path: &std::path::Path) -> (UnixListener, Vec<UnixStream>) {
    let listener = UnixListener::bind(path).unwrap();
    rustix::net::listen(&listener, 0).unwrap();
    let mut clients = Vec::new();
    loop {
        match client::connect(path) {
            Ok(client) => clients.push(client),
            Err(ClientError::Busy) => return (listener, clients),
            Err(error) => panic!("{error}"),
        }
    }
}

#[test]
fn a_monitor_that_has_its_client_is_tried_again() {
    let directory = tempfile::tempdir().unwrap();
    let (listener, clients) = full_monitor(&directory.path().join("qmp"));
    let bench = Bench::on(listener, directory);
    for client in clients {
        drop(bench.accept());
        drop(client);
    }
    bench.greeted();
}

#[test]
fn the_end_of_the_process_does_not_wait_for_a_monitor_that_has_its_client() {
    let directory = tempfile::tempdir().unwrap();
    let (listener, _clients) = full_monitor(&directory.path().join("qmp"));
    drop(Bench::on(listener, directory));
}
