// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A page request while a MAP of a gigabyte is in progress, beside one on its own.

use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use vhost_device_iommu::spec::EVENT_LEN;

use crate::common::guest::{EVENTS, Queued};
use crate::common::queue::VirtQueue;
use crate::common::requests::{self, ATTACH_PAGE_REQUEST, READ, WRITE};
use crate::common::{Guest, GuestOptions};
use crate::kernel;
use crate::program::{ENDPOINT, OTHER, Program};
use crate::{Figure, compare, median};

const IOVA: u64 = 0x4000_0000;
const GIB: u64 = 1 << 30;
const GPA: u64 = 4 * GIB;
const SAMPLES: usize = 40;

pub fn figure() -> Figure {
    let program = Program::start(&["--page-response-timeout", "0", "--log-level", "error"]);
    let mut guest = program.guest_with(&GuestOptions {
        queue_size: 256,
        ram: vec![(0x1_0000, 32 << 20), (GPA, GIB)],
        ..Default::default()
    });
    guest.post_events(128, EVENT_LEN, true);
    for (domain, endpoint) in [(1, ENDPOINT), (2, OTHER)] {
        assert_eq!(
            guest.request(&requests::attach(domain, endpoint, ATTACH_PAGE_REQUEST)),
            0
        );
    }
    let map = requests::map(1, IOVA, IOVA + (GIB - 1), GPA, READ | WRITE);
    let unmap = requests::unmap(1, IOVA, IOVA + (GIB - 1));
    // The first time, memory comes into being too.
    for request in [&map, &unmap] {
        let queued = guest.queue(request, 4);
        guest.queues[0].submit();
        assert_eq!(finish(&mut guest, queued), 0);
    }

    let alone = median(
        (0..SAMPLES)
            .map(|_| page_request(&program, &mut guest))
            .collect(),
    );

    let queued = guest.queue(&map, 4);
    let start = Instant::now();
    guest.queues[0].submit();
    let mut during = Vec::new();
    while in_progress(&guest.queues[0]) && during.len() < SAMPLES {
        let time = page_request(&program, &mut guest);
        if in_progress(&guest.queues[0]) {
            during.push(time);
        }
    }
    assert_eq!(finish(&mut guest, queued), 0);
    let whole = start.elapsed();
    eprintln!(
        "MAP of 1 GiB: {whole:?}, {} page requests meanwhile",
        during.len()
    );
    assert!(!during.is_empty(), "none fell into the MAP");
    compare(
        "page request during a MAP of 1 GiB",
        median(during),
        ("alone", alone),
        2.0,
        "at most 2",
    )
}

fn in_progress(queue: &VirtQueue) -> bool {
    queue.used_index() != queue.available_index
}

/// Waits as long as it takes; the status.
fn finish(guest: &mut Guest, queued: Queued) -> u8 {
    while in_progress(&guest.queues[0]) {
        std::thread::sleep(Duration::from_millis(1));
    }
    let (_, written) = guest.queues[0].wait();
    guest.collect(queued, written).status()
}

/// From the device's asking to the event in the guest, in microseconds. The guest sleeps until it is interrupted: one
/// that watches the queue would take a processor that the program needs beside the MAP.
fn page_request(program: &Program, guest: &mut Guest) -> f64 {
    let events = &mut guest.queues[EVENTS];
    events.want_interrupts(true);
    let start = Instant::now();
    program.page_request(OTHER, kernel::READ, IOVA);
    let interrupt = EpollEvent::new(EventSet::IN, 0);
    let set = Epoll::new().expect("an epoll set");
    set.ctl(ControlOperation::Add, events.call.as_raw_fd(), interrupt)
        .expect("the interrupt's descriptor");
    set.wait(-1, &mut [interrupt]).expect("an interrupt");
    assert!(events.interrupted());
    let event = guest.page_request();
    assert_eq!(event.endpoint.get(), OTHER);
    start.elapsed().as_secs_f64() * 1e6
}
