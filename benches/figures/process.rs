// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The program as a process: start, idle size, idle processor time.

use std::os::unix::net::UnixStream;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use super::common::{Guest, GuestOptions, requests};
use super::{Figure, median};

const IDLE: Duration = Duration::from_secs(5);

struct Program(Child);

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn start(path: &std::path::Path) -> Program {
    Program(
        Command::new(env!("CARGO_BIN_EXE_vhost-device-iommu"))
            .arg("--socket-path")
            .arg(path)
            .args(["--endpoint", "8", "--log-level", "warn"])
            .spawn()
            .expect("the program"),
    )
}

pub fn figures() -> Vec<Figure> {
    let directory = tempfile::tempdir().expect("a directory");
    let mut starts = Vec::new();
    let mut bare = Vec::new();
    for round in 0..20 {
        let path = directory.path().join(round.to_string());
        let begin = Instant::now();
        let program = start(&path);
        while UnixStream::connect(&path).is_err() {
            std::thread::yield_now();
        }
        starts.push(begin.elapsed().as_secs_f64() * 1e3);
        drop(program);
        let begin = Instant::now();
        Command::new("/bin/true").status().expect("/bin/true");
        bare.push(begin.elapsed().as_secs_f64() * 1e3);
    }
    let (listening, bare) = (median(starts), median(bare));

    let path = directory.path().join("idle");
    let program = start(&path);
    let mut guest = Guest::connect(&path, &GuestOptions::default());
    assert_eq!(guest.request(&requests::attach(1, 8, 0)), 0);
    // It may watch the ring for a moment after a request; that is not idle yet.
    std::thread::sleep(Duration::from_millis(100));
    let before = processor_time(&program);
    std::thread::sleep(IDLE);
    let spent = processor_time(&program) - before;
    let share = spent / IDLE.as_secs_f64() * 100.0;
    let resident = status_kib(&program, "VmRSS:") / 1024.0;
    // The guest's memory is in it as far as the guest has touched it: rings and buffers.
    let shared = status_kib(&program, "RssShmem:") / 1024.0;
    vec![
        Figure {
            what: "start to listening".into(),
            ours: format!("{listening:.1} ms"),
            beside: Some((
                format!("/bin/true, start to end {bare:.1} ms"),
                listening / bare,
            )),
            goal: "<= 20 ms",
            met: listening <= 20.0,
        },
        Figure {
            what: "resident when idle, a guest connected".into(),
            ours: format!("{resident:.1} MiB ({shared:.1} MiB of it the guest's)"),
            beside: None,
            goal: "<= 8 MiB",
            met: resident <= 8.0,
        },
        Figure {
            what: "processor time of an idle guest".into(),
            ours: format!("{share:.3} % of a core"),
            beside: None,
            goal: "< 0.1 %",
            met: share < 0.1,
        },
    ]
}

fn status_kib(program: &Program, field: &str) -> f64 {
    let path = format!("/proc/{}/status", program.0.id());
    let text = std::fs::read_to_string(path).expect("/proc");
    let line = text
        .lines()
        .find(|line| line.starts_with(field))
        .expect("a line");
    let value = line.split_whitespace().nth(1).expect("a value");
    value.parse().expect("a number")
}

/// Seconds that the threads of a process have run, to the nanosecond.
fn processor_time(program: &Program) -> f64 {
    let tasks = format!("/proc/{}/task", program.0.id());
    std::fs::read_dir(tasks)
        .expect("/proc")
        .map(|task| {
            let path = task.expect("a task").path().join("schedstat");
            let text = std::fs::read_to_string(path).expect("schedstat");
            let nanoseconds: f64 = text
                .split(' ')
                .next()
                .expect("a field")
                .parse()
                .expect("a number");
            nanoseconds / 1e9
        })
        .sum()
}
