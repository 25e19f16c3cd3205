// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The way of one page request, told step by step: the second part of `qemu-scripts/demo`.

use super::*;
use crate::kernel;
use std::time::Instant;

/// One line for each step, with its time; `qemu-scripts/demo` shows the lines that start with "step ".
struct Story(Instant);

impl Story {
    fn step(&self, text: &str) {
        println!(
            "step {:9.3} ms  {text}",
            self.0.elapsed().as_secs_f64() * 1e3
        );
    }
}

#[test]
fn a_page_request_travels_to_the_guest_and_back() {
    let story = Story(Instant::now());
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let (program, mut guest) = with_page_requests(&[], 4);
    let device = program.device(ENDPOINT).dev;
    story.step(&format!(
        "host: Linux {} with iommufd; its mock device {device} is endpoint {ENDPOINT:#x} of the back-end",
        release.trim()
    ));
    story.step("guest: ATTACH the endpoint to domain 1, with page requests: OK");
    assert!(program.reaches_none(ENDPOINT, &guest, IOVA, 4096, GPA));
    story.step(&format!(
        "host: the kernel's page table for the device maps nothing at {IOVA:#x}"
    ));

    program.page_request(ENDPOINT, kernel::READ | kernel::WRITE, IOVA);
    story.step(&format!(
        "device: touches {IOVA:#x}, waits: an I/O page fault in the host's kernel, in the fault queue of iommufd"
    ));
    let event = guest.page_request();
    assert_eq!(event.address.get(), IOVA);
    let group = event.group_id.get();
    story.step(&format!(
        "guest: event: page request of endpoint {:#x} at {:#x} [RW], group {group}",
        event.endpoint.get(),
        event.address.get(),
    ));

    assert_eq!(map(&mut guest, 1, IOVA, 4096, GPA), OK);
    story.step(&format!(
        "guest: MAP {IOVA:#x} to its memory at {GPA:#x}: OK"
    ));
    assert!(program.reaches(ENDPOINT, &guest, IOVA, 4096, GPA));
    story.step(
        "host: the kernel's page table for the device leads to that page of the guest's memory",
    );
    assert_eq!(respond(&mut guest, ENDPOINT, &event, SUCCESS), OK);
    story.step(&format!(
        "guest: PAGE_RESPONSE SUCCESS for group {group}: OK, the kernel took it and the device goes on"
    ));
    assert_eq!(program.counter("page_request_success"), 1);
    assert_eq!(respond(&mut guest, ENDPOINT, &event, SUCCESS), NOENT);
    story.step("guest: the same answer again: NOENT, there is no such group any more");
}
