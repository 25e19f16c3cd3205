// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! One request, from kick to used: with a worker that sleeps, and with one that watches the ring. The driver is on one
//! processor, the worker on another.

use std::hint::spin_loop;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use vhost_device_iommu::transport::Options;
use vmm_sys_util::eventfd::EventFd;

use super::common::guest::{Guest, GuestOptions, REQUESTS};
use super::common::{Server, ServerOptions, requests};
use super::{Figure, median, pin};

const ROUNDS: usize = 4000;

pub fn figures() -> Vec<Figure> {
    // Alternately, so that whatever else the machine does concerns both.
    let (mut sleeping, mut ping_pong) = (Vec::new(), Vec::new());
    let (mut watching, mut spinning) = (Vec::new(), Vec::new());
    for _ in 0..5 {
        sleeping.push(kick_to_used(Duration::ZERO));
        ping_pong.push(eventfd_ping_pong());
        watching.push(kick_to_used(Duration::from_millis(10)));
        spinning.push(spinning_ping_pong());
    }
    let (sleeping, ping_pong) = (median(sleeping), median(ping_pong));
    let (watching, spinning) = (median(watching), median(spinning));
    vec![
        Figure {
            what: "one request, kick to used, worker asleep".into(),
            ours: format!("{sleeping:.1} us"),
            beside: Some((
                format!("eventfd ping-pong {ping_pong:.1} us"),
                sleeping / ping_pong,
            )),
            goal: "<= 1.1 x",
            met: sleeping <= 1.1 * ping_pong,
        },
        Figure {
            what: "one request, kick to used, worker watching".into(),
            ours: format!("{watching:.2} us"),
            beside: Some((
                format!("spinning ping-pong {spinning:.2} us"),
                watching / spinning,
            )),
            goal: "<= 1 us",
            met: watching <= 1.0,
        },
    ]
}

/// The median time in microseconds of an UNMAP of nothing.
fn kick_to_used(poll: Duration) -> f64 {
    let server = pin::device_side(|| {
        Server::start(ServerOptions {
            transport: Options {
                poll,
                ..Options::default()
            },
            ..ServerOptions::default()
        })
    });
    let mut guest = Guest::connect(&server.path, &GuestOptions::default());
    assert_eq!(guest.request(&requests::attach(1, 8, 0)), 0);
    let unmap = requests::unmap(1, 0, 0xfff);
    let mut times = Vec::new();
    for _ in 0..ROUNDS {
        let queued = guest.queue(&unmap, 4);
        let queue = &mut guest.queues[REQUESTS];
        if poll.is_zero() {
            // Asleep: nothing wakes it but the kick.
            std::thread::sleep(Duration::from_micros(20));
        }
        let begin = Instant::now();
        queue.submit();
        while queue.used_index() == queue.used_seen {
            spin_loop();
        }
        times.push(begin.elapsed().as_secs_f64() * 1e6);
        let (_, written) = queue.wait();
        assert_eq!(guest.collect(queued, written).status(), 0);
    }
    median(times)
}

/// The median time in microseconds there and back between two threads.
fn eventfd_ping_pong() -> f64 {
    let (there, back) = (
        EventFd::new(0).expect("eventfd"),
        EventFd::new(0).expect("eventfd"),
    );
    let (there2, back2) = (
        there.try_clone().expect("eventfd"),
        back.try_clone().expect("eventfd"),
    );
    let other = std::thread::spawn(move || {
        pin::to(pin::DEVICE);
        for _ in 0..ROUNDS {
            there2.read().expect("eventfd");
            back2.write(1).expect("eventfd");
        }
    });
    let mut times = Vec::new();
    for _ in 0..ROUNDS {
        std::thread::sleep(Duration::from_micros(20));
        let begin = Instant::now();
        there.write(1).expect("eventfd");
        back.read().expect("eventfd");
        times.push(begin.elapsed().as_secs_f64() * 1e6);
    }
    other.join().expect("the other thread");
    median(times)
}

/// The median time in microseconds there and back between two threads that both spin.
fn spinning_ping_pong() -> f64 {
    let turn = Arc::new(AtomicU32::new(0));
    let other = {
        let turn = Arc::clone(&turn);
        std::thread::spawn(move || {
            pin::to(pin::DEVICE);
            for round in 0..ROUNDS as u32 {
                while turn.load(Ordering::Acquire) != 2 * round + 1 {
                    spin_loop();
                }
                turn.store(2 * round + 2, Ordering::Release);
            }
        })
    };
    let mut times = Vec::new();
    for round in 0..ROUNDS as u32 {
        let begin = Instant::now();
        turn.store(2 * round + 1, Ordering::Release);
        while turn.load(Ordering::Acquire) != 2 * round + 2 {
            spin_loop();
        }
        times.push(begin.elapsed().as_secs_f64() * 1e6);
    }
    other.join().expect("the other thread");
    median(times)
}
