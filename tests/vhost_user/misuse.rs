// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What one front-end does wrong costs that front-end, and no later one.

use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use vhost::vhost_user::VhostUserFrontend;
use vhost::vhost_user::message::VhostUserHeaderFlag;
use vhost::{VhostBackend, VhostUserMemoryRegionInfo};
use vhost_device_iommu::device::DeviceConfig;
use vhost_device_iommu::host::Requester;
use vhost_device_iommu::host::soft::{SoftHost, Transfer, block_on, default_properties};
use vhost_device_iommu::spec::{EndpointId, Iova};
use vmm_sys_util::eventfd::EventFd;

use crate::OK;
use crate::common::guest::{EVENTS, REQUESTS};
use crate::common::requests::attach;
use crate::common::watched_host::{Watch, WatchedHost};
use crate::common::{Guest, GuestOptions, Server, ServerOptions, ram, wait_until};

const ENDPOINT: u32 = 8;
/// Where the first region of guest memory begins.
const RAM: u64 = 0x1_0000;

fn server() -> Server {
    Server::start(ServerOptions {
        config: DeviceConfig {
            boot_bypass: false,
            ..DeviceConfig::default()
        },
        ..ServerOptions::default()
    })
}

fn connect(server: &Server) -> Guest {
    Guest::connect(&server.path, &GuestOptions::default())
}

/// An access of the endpoint that is refused, and reported.
fn fail(server: &Server, iova: u64) {
    let requester = Requester {
        endpoint: EndpointId(ENDPOINT),
        pasid: None,
    };
    let port = server.host.port(requester.endpoint).expect("an endpoint");
    let mut bytes = [0; 4];
    block_on(port.access(None, Iova(iova), Transfer::Read(&mut bytes))).expect_err("not mapped");
}

/// The guest's requests are answered, and a fault is reported to it. Its own, and none of an earlier guest's.
fn works(server: &Server, guest: &mut Guest) {
    assert_eq!(guest.request(&attach(1, ENDPOINT, 0)), OK);
    guest.post_events(4, 32, true);
    fail(server, 0x7000);
    assert_eq!(guest.fault().address.get(), 0x7000);
}

/// A blocking eventfd whose counter is full.
fn full() -> EventFd {
    let event = EventFd::new(0).expect("an eventfd");
    event.write(u64::MAX - 1).expect("room");
    event
}

#[test]
fn kicks_just_before_the_end_of_a_connection_cost_no_later_guest_its_reports() {
    let server = server();
    for _ in 0..100 {
        let guest = connect(&server);
        guest.queues[EVENTS].kick.write(1).expect("a kick");
        guest.queues[REQUESTS].kick.write(1).expect("a kick");
    }
    works(&server, &mut connect(&server));
}

#[test]
fn a_broken_event_queue_belongs_to_its_connection() {
    let server = server();
    let mut guest = connect(&server);
    let queue = &mut guest.queues[EVENTS];
    queue.available_index = 1000;
    queue.publish();
    queue.kick.write(1).expect("a kick");
    wait_until("a broken ring is found", || {
        server.device.counters().rings_broken.get() == 1
    });
    drop(guest);
    // The same messages again.
    works(&server, &mut connect(&server));
}

#[test]
fn queues_whose_memory_comes_back_are_served_again() {
    let server = server();
    let mut guest = connect(&server);
    works(&server, &mut guest);
    let kicks = [REQUESTS, EVENTS].map(|queue| {
        let kick = &guest.queues[queue].kick;
        kick.try_clone().expect("a duplicate")
    });
    let (info, mapped) = guest.ram.remove(RAM);
    guest
        .frontend
        .remove_mem_region(&info)
        .expect("REM_MEM_REG");
    for kick in &kicks {
        kick.write(1).expect("a kick");
    }
    wait_until("both queues are found broken", || {
        server.device.counters().rings_broken.get() == 2
    });
    guest.ram.map = guest.ram.map.insert_region(mapped).expect("room");
    guest.frontend.add_mem_region(&info).expect("ADD_MEM_REG");
    works(&server, &mut guest);
}

#[test]
fn what_came_while_the_ring_was_away_is_served_without_another_kick() {
    let server = server();
    let mut guest = connect(&server);
    let queued = guest.queue(&attach(1, ENDPOINT, 0), 4);
    let (info, mapped) = guest.ram.remove(RAM);
    guest
        .frontend
        .remove_mem_region(&info)
        .expect("REM_MEM_REG");
    guest.ram.map = guest.ram.map.insert_region(mapped).expect("room");
    guest.queues[REQUESTS].submit();
    guest.queues[REQUESTS].kick.write(1).expect("a kick");
    wait_until("both queues are found broken", || {
        server.device.counters().rings_broken.get() == 2
    });
    guest.frontend.add_mem_region(&info).expect("ADD_MEM_REG");
    let (_, written) = guest.queues[REQUESTS].wait();
    assert_eq!(guest.collect(queued, written).status(), OK);
}

#[test]
fn reports_of_no_connection_and_of_an_earlier_one_reach_no_guest() {
    let server = server();
    for page in 0..70 {
        fail(&server, page << 12);
    }
    let mut guest = connect(&server);
    works(&server, &mut guest);
    for page in 0..70 {
        fail(&server, page << 12);
    }
    drop(guest);
    works(&server, &mut connect(&server));
}

#[test]
fn a_notification_that_blocks_ends_with_its_connection() {
    let server = server();
    for queue in [REQUESTS, EVENTS] {
        let mut guest = connect(&server);
        guest
            .frontend
            .set_vring_call(queue, &full())
            .expect("an eventfd");
        guest.queues[queue].want_interrupts(true);
        guest.post_events(1, 32, true);
        assert_eq!(guest.request(&attach(1, ENDPOINT, 0)), OK);
        fail(&server, 0x7000);
        if queue == EVENTS {
            assert_eq!(guest.fault().address.get(), 0x7000);
        }
        // A message that has to wait for the worker; no answer is waited for.
        guest.frontend.set_hdr_flags(VhostUserHeaderFlag::empty());
        guest
            .frontend
            .set_vring_enable(queue, false)
            .expect("SET_VRING_ENABLE");
        drop(guest);
        works(&server, &mut connect(&server));
    }
}

#[test]
fn stopping_waits_for_no_notification_that_blocks() {
    for queue in [REQUESTS, EVENTS] {
        let mut server = server();
        let mut guest = connect(&server);
        guest
            .frontend
            .set_vring_call(queue, &full())
            .expect("an eventfd");
        guest.queues[queue].want_interrupts(true);
        guest.post_events(1, 32, true);
        assert_eq!(guest.request(&attach(1, ENDPOINT, 0)), OK);
        fail(&server, 0x7000);
        if queue == EVENTS {
            assert_eq!(guest.fault().address.get(), 0x7000);
        }
        server.stop();
    }
}

#[test]
fn a_region_that_is_longer_than_its_file_is_refused() {
    let server = server();
    let file = ram::memfd(0x1000);
    let region = |offset, length| VhostUserMemoryRegionInfo {
        guest_phys_addr: 0x1_0000_0000,
        memory_size: length,
        userspace_addr: 0x10_0000_0000,
        mmap_offset: offset,
        mmap_handle: file.as_raw_fd(),
    };
    let mut guest = connect(&server);
    guest
        .frontend
        .add_mem_region(&region(0, 0x1000))
        .expect("all of the file");
    drop(guest);
    for region in [region(0, 0x2000), region(0x1000, 0x1000)] {
        let mut guest = connect(&server);
        guest
            .frontend
            .add_mem_region(&region)
            .expect_err("beyond the end of the file");
        drop(guest);
        let guest = connect(&server);
        guest
            .frontend
            .set_mem_table(&[region])
            .expect_err("beyond the end of the file");
    }
    works(&server, &mut connect(&server));
}

/// Makes a host panic once, when memory comes.
#[derive(Default)]
struct Panic {
    spent: AtomicBool,
}

impl Watch for Panic {
    fn memory_changes(&self) {
        assert!(
            self.spent.swap(true, Ordering::AcqRel),
            "on purpose, of a test"
        );
    }
}

#[test]
fn a_panic_while_a_message_is_answered_costs_its_connection() {
    let options = ServerOptions::default();
    let host = SoftHost::new().expect("a host");
    for &id in &options.endpoints {
        host.add_endpoint(EndpointId(id), default_properties())
            .expect("an endpoint");
    }
    let host = WatchedHost::<_, Panic>::new(Arc::new(host));
    let server = Server::over(Arc::new(host), options);
    let stream = UnixStream::connect(&server.path).expect("a connection");
    let guest = Guest::prepare(stream, &GuestOptions::default());
    guest
        .frontend
        .set_mem_table(&guest.ram.infos())
        .expect_err("the connection ends");
    let mut guest = Guest::connect(&server.path, &GuestOptions::default());
    assert_eq!(guest.request(&attach(1, ENDPOINT, 0)), OK);
}
