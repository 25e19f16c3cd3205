// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Page requests over the software host, beside a bare loop over an eventfd and a list.

use std::collections::VecDeque;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::{Arc, Mutex};

use vhost_device_iommu::host::PageRequest;
use vhost_device_iommu::host::soft::{SoftHost, default_properties};
use vhost_device_iommu::spec::{EndpointId, EventFlags, Iova};
use vmm_sys_util::eventfd::EventFd;

use super::bare::{self, Queue};
use super::hops::Course;

const ENDPOINT: u32 = 8;
const IOVA: Iova = Iova(0x4000_0000);
const ROUNDS: usize = 1000;
const GROUPS: usize = 100_000;

/// A list behind an eventfd, as the software host has one, and an eventfd for answers.
struct List {
    asked: EventFd,
    answered: EventFd,
    waiting: Mutex<VecDeque<Iova>>,
}

impl Queue for List {
    fn fd(&self) -> RawFd {
        self.asked.as_raw_fd()
    }

    fn raise(&self) {
        self.waiting.lock().expect("a list").push_back(IOVA);
        self.asked.write(1).expect("an eventfd");
    }

    fn serve(&self) -> usize {
        self.asked.read().expect("an eventfd");
        let served = self.waiting.lock().expect("a list").drain(..).count();
        self.answered.write(served as u64).expect("an eventfd");
        served
    }
}

pub fn measure() {
    let list = List {
        asked: EventFd::new(0).expect("an eventfd"),
        answered: EventFd::new(0).expect("an eventfd"),
        waiting: Mutex::default(),
    };
    let bare = bare::measure(&list, ROUNDS, GROUPS);

    let host = Arc::new(SoftHost::new().expect("a host"));
    let endpoint = EndpointId(ENDPOINT);
    host.add_endpoint(endpoint, default_properties())
        .expect("an endpoint");
    let port = host.port(endpoint).expect("a port");
    let raise = move || {
        let page = PageRequest {
            address: IOVA,
            access: EventFlags::READ,
            length: 0,
        };
        // The response is not waited for: the group stays outstanding until it is answered.
        let response = port.page_request(None, vec![page]);
        drop(response.expect("a page request"));
    };
    Course::new(host, ENDPOINT, raise).figures("software host", &bare, Some(20.0), ROUNDS, GROUPS);
}
