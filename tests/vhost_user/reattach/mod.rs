// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Fresh daemons of the library under a front-end that stays connected.

mod moments;

use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use vhost::VhostBackend;
use vhost::vhost_user::VhostUserFrontend;
use vhost_device_iommu::device::DeviceConfig;
use vhost_device_iommu::host::PageRequest;
use vhost_device_iommu::host::soft::{SoftHost, Transfer, block_on, default_properties};
use vhost_device_iommu::spec::{EndpointId, EventFlags, Iova, PageResponseCode};
use vhost_device_iommu::transport::{Reattach, ReattachError, Reattached};
use vmm_sys_util::eventfd::EventFd;

use crate::common::guest::{EVENT_IDX, EVENTS, PROTOCOL_FEATURES, REQUESTS};
use crate::common::requests::{ATTACH_PAGE_REQUEST, READ, attach, map, page_response, unmap};
use crate::common::watched_host::{Watch, WatchedHost};
use crate::common::{Guest, GuestOptions, Layout, Server, ServerOptions, ram, wait_until};
use crate::{INVAL, NOENT, OK, every_layout};

const ENDPOINT: u32 = 8;
const RAM: u64 = 0x1_0000;

/// How often a test reattaches that does so at random moments.
fn often() -> usize {
    match std::env::var_os("LAB_EXHAUSTIVE") {
        Some(_) => 2_000,
        None => 200,
    }
}

/// A server, and what reattaches its front-end.
fn start(options: ServerOptions) -> (Server, Arc<Reattach>) {
    let reattach = Arc::clone(&options.transport.reattach);
    (Server::start(options), reattach)
}

fn done(reattach: &Reattach) -> Reattached {
    block_on(reattach.ask()).expect("a reattachment")
}

/// A guest with domain 1 and a mapping in it.
fn mapped(server: &Server, options: &GuestOptions) -> Guest {
    let mut guest = Guest::connect(&server.path, options);
    assert_eq!(guest.request(&attach(1, ENDPOINT, 0)), OK);
    assert_eq!(guest.request(&a_map()), OK);
    guest
}

fn a_map() -> Vec<u8> {
    map(1, 0, 0xfff, RAM, READ)
}

#[test]
fn a_guest_finds_everything_as_it_was() {
    for options in every_layout() {
        let (server, reattach) = start(ServerOptions::default());
        let mut guest = mapped(&server, &options);
        let first = done(&reattach);
        for _ in 0..3 {
            // The front-end has said nothing since.
            assert_eq!(done(&reattach).messages, first.messages);
            // Overlaps the mapping that is there.
            assert_eq!(guest.request(&a_map()), INVAL);
        }
        guest.config();
        assert_eq!(done(&reattach).messages, first.messages + 1);
        let counters = server.device.counters();
        assert_eq!(counters.reattachments.get(), 5);
        assert_eq!((counters.resets.get(), counters.connections.get()), (0, 1));
        let bases = guest.stop();
        assert_eq!(bases[REQUESTS], guest.queues[REQUESTS].available_index);
        guest.start(bases);
        assert_eq!(guest.request(&a_map()), INVAL);
    }
}

#[test]
fn without_a_front_end_there_is_nothing_to_reattach() {
    let (server, reattach) = start(ServerOptions::default());
    assert_eq!(block_on(reattach.ask()), Err(ReattachError::NoFrontEnd));
    drop(mapped(&server, &GuestOptions::default()));
    wait_until("the end of the connection", || {
        block_on(reattach.ask()) == Err(ReattachError::NoFrontEnd)
    });
    mapped(&server, &GuestOptions::default());
}

#[test]
fn stopped_queues_stay_stopped() {
    let (server, reattach) = start(ServerOptions::default());
    let mut guest = mapped(&server, &GuestOptions::default());
    let bases = guest.stop();
    done(&reattach);
    // A driver that goes on where it stopped.
    guest.start(bases);
    assert_eq!(guest.request(&a_map()), INVAL);
    assert_eq!(server.device.counters().resets.get(), 0);
    // And a new one.
    guest.stop();
    done(&reattach);
    done(&reattach);
    guest.start_anew();
    assert_eq!(guest.request(&a_map()), NOENT);
    assert_eq!(server.device.counters().resets.get(), 1);
}

#[test]
fn what_is_known_of_the_driver_stays_known() {
    let options = ServerOptions::default();
    let driver_life = Arc::clone(&options.transport.driver_life);
    let (server, reattach) = start(options);
    let mut guest = mapped(&server, &GuestOptions::default());
    done(&reattach);
    assert_eq!(driver_life.undecided_stop(), None);
    let bases = guest.stop();
    let stop = driver_life.undecided_stop();
    assert!(stop.is_some());
    done(&reattach);
    // No driver has come.
    assert_eq!(driver_life.undecided_stop(), stop);
    assert!(driver_life.machine_was_reset(&server.device));
    done(&reattach);
    guest.start(bases);
    assert_eq!(guest.request(&a_map()), NOENT);
    assert_eq!(server.device.counters().resets.get(), 1);
}

#[test]
fn a_queue_that_is_not_enabled_waits_until_it_is() {
    let (server, reattach) = start(ServerOptions::default());
    let stream = UnixStream::connect(&server.path).expect("a connection");
    let mut guest = Guest::prepare(stream, &GuestOptions::default());
    guest.send_memory();
    guest.start_queue(EVENTS, 0);
    guest.set_up_queue(REQUESTS, 0);
    let queued = guest.queue(&attach(1, ENDPOINT, 0), 4);
    guest.queues[REQUESTS].submit();
    done(&reattach);
    // The worker of a queue that runs would take it at once; stopping waits for it.
    let base = guest.frontend.get_vring_base(REQUESTS);
    assert_eq!(base.expect("GET_VRING_BASE"), 0);
    guest.set_up_queue(REQUESTS, 0);
    done(&reattach);
    guest
        .frontend
        .set_vring_enable(REQUESTS, true)
        .expect("SET_VRING_ENABLE");
    let (_, written) = guest.queues[REQUESTS].wait();
    assert_eq!(guest.collect(queued, written).status(), OK);
}

#[test]
fn queues_are_enabled_by_themselves_without_protocol_features() {
    let (server, reattach) = start(ServerOptions::default());
    let stream = UnixStream::connect(&server.path).expect("a connection");
    let mut guest = Guest::prepare(stream, &GuestOptions::default());
    guest.send_memory();
    guest
        .frontend
        .set_features(guest.features & !PROTOCOL_FEATURES)
        .expect("SET_FEATURES");
    done(&reattach);
    for queue in [REQUESTS, EVENTS] {
        guest.set_up_queue(queue, 0);
        done(&reattach);
    }
    assert_eq!(guest.request(&attach(1, ENDPOINT, 0)), OK);
    assert_eq!(guest.request(&a_map()), OK);
}

#[test]
fn a_device_that_its_front_end_has_reset_can_be_started() {
    let (server, reattach) = start(ServerOptions::default());
    let mut guest = mapped(&server, &GuestOptions::default());
    guest.frontend.reset_device().expect("RESET_DEVICE");
    done(&reattach);
    // The queues are disabled by now.
    for queue in [REQUESTS, EVENTS] {
        let base = guest.frontend.get_vring_base(queue);
        base.expect("GET_VRING_BASE");
    }
    done(&reattach);
    guest.start_anew();
    assert_eq!(guest.request(&a_map()), NOENT);
}

#[test]
fn a_front_end_that_is_half_set_up_goes_on() {
    let (server, reattach) = start(ServerOptions::default());
    let stream = UnixStream::connect(&server.path).expect("a connection");
    let mut guest = Guest::prepare(stream, &GuestOptions::default());
    done(&reattach);
    guest.send_memory();
    done(&reattach);
    guest
        .frontend
        .set_features(guest.features)
        .expect("SET_FEATURES");
    done(&reattach);
    guest.start_queue(REQUESTS, 0);
    done(&reattach);
    assert_eq!(guest.request(&attach(1, ENDPOINT, 0)), OK);
    guest.start_queue(EVENTS, 0);
    done(&reattach);
    assert_eq!(guest.request(&a_map()), OK);
    // What the library keeps: the owner.
    guest.frontend.set_owner().expect_err("there is an owner");
}

/// Counts how often the host hears of memory.
#[derive(Default)]
struct MemoryChanges(AtomicUsize);

impl Watch for MemoryChanges {
    fn memory_changes(&self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

#[test]
fn memory_is_what_it_was_for_the_device() {
    let options = ServerOptions::default();
    let reattach = Arc::clone(&options.transport.reattach);
    let host = SoftHost::new().expect("a host");
    for &id in &options.endpoints {
        host.add_endpoint(EndpointId(id), default_properties())
            .expect("an endpoint");
    }
    let host = Arc::new(WatchedHost::<_, MemoryChanges>::new(Arc::new(host)));
    let server = Server::over(Arc::clone(&host), options);
    let mut guest = Guest::connect(&server.path, &GuestOptions::default());
    assert_eq!(guest.request(&attach(1, ENDPOINT, 0)), OK);
    assert_eq!(guest.request(&a_map()), OK);
    // More regions than one message has room for.
    let regions = 40_u64;
    for number in (1..=regions).rev() {
        let gpa = 0x1000_0000 * number;
        // Of a file that has more.
        let region = ram::region_of(ram::memfd(0x8_0000), 0x1000 * number, gpa, 0x1_0000);
        let info = guest.ram.insert(region);
        guest.frontend.add_mem_region(&info).expect("ADD_MEM_REG");
    }
    let before = serde_json::to_value(server.device.status().memory).expect("JSON");
    assert_eq!(before.as_array().map(Vec::len), Some(41));
    let changes = host.watch.0.load(Ordering::SeqCst);
    for _ in 0..3 {
        done(&reattach);
        assert_eq!(host.watch.0.load(Ordering::SeqCst), changes);
        let after = serde_json::to_value(server.device.status().memory).expect("JSON");
        assert_eq!(after, before);
        assert_eq!(guest.request(&a_map()), INVAL);
    }
    // The fresh library knows each region.
    for number in 1..=regions {
        let (info, _mapped) = guest.ram.remove(0x1000_0000 * number);
        guest
            .frontend
            .remove_mem_region(&info)
            .expect("REM_MEM_REG");
        done(&reattach);
    }
    assert_eq!(server.device.status().memory.len(), 1);
    assert_eq!(guest.request(&a_map()), INVAL);
}

#[test]
fn a_ring_without_memory_goes_on_when_the_memory_is_back() {
    let (server, reattach) = start(ServerOptions::default());
    let mut guest = mapped(&server, &GuestOptions::default());
    let info = guest.ram.infos().remove(0);
    // QEMU does so to change the size of a region.
    guest
        .frontend
        .remove_mem_region(&info)
        .expect("REM_MEM_REG");
    done(&reattach);
    done(&reattach);
    guest.frontend.add_mem_region(&info).expect("ADD_MEM_REG");
    done(&reattach);
    assert_eq!(guest.request(&a_map()), INVAL);
}

#[test]
fn a_notification_that_blocks_holds_up_neither_a_reattachment_nor_the_end() {
    for queue in [REQUESTS, EVENTS] {
        let (mut server, reattach) = start(ServerOptions::default());
        let mut guest = mapped(&server, &GuestOptions::default());
        guest.post_events(1, 32, true);
        // It blocks, and is full.
        let call = EventFd::new(0).expect("an eventfd");
        call.write(u64::MAX - 1).expect("room");
        guest
            .frontend
            .set_vring_call(queue, &call)
            .expect("an eventfd");
        guest.queues[queue].want_interrupts(true);
        assert_eq!(guest.request(&unmap(1, 0, 0xfff)), OK);
        let port = server.host.port(EndpointId(ENDPOINT)).expect("a port");
        block_on(port.access(None, Iova(0), Transfer::Read(&mut [0]))).expect_err("not mapped");
        guest.fault();
        done(&reattach);
        done(&reattach);
        assert_eq!(server.device.counters().reattachments.get(), 2);
        if queue == EVENTS {
            server.stop();
            continue;
        }
        // The notification was interrupted, and comes once there is room.
        assert_eq!(call.read().expect("a full counter"), u64::MAX - 1);
        wait_until("a notification", || is_readable(&call));
        assert_eq!(guest.request(&a_map()), OK);
    }
}

fn is_readable(event: &EventFd) -> bool {
    use std::os::fd::{AsRawFd, BorrowedFd};
    // SAFETY: the descriptor is open for as long as `event` is borrowed.
    let event = unsafe { BorrowedFd::borrow_raw(event.as_raw_fd()) };
    let mut descriptors = [PollFd::new(&event, PollFlags::IN)];
    poll(&mut descriptors, Some(&Timespec::default())) == Ok(1)
}

#[test]
fn a_message_that_is_not_whole_holds_a_reattachment_up_until_the_end_of_the_connection() {
    let (server, reattach) = start(ServerOptions::default());
    let mut stream = UnixStream::connect(&server.path).expect("a connection");
    wait_until("the connection", || server.device.status().connected);
    // The header of GET_CONFIG, and no body.
    let words = [24_u32, 1, 64].map(u32::to_ne_bytes).concat();
    std::io::Write::write_all(&mut stream, &words[..6]).expect("room");
    // The thread has begun to receive when nothing is left in the socket.
    wait_until("the first bytes are taken", || unread(&stream) == 0);
    let asked = reattach.ask();
    std::io::Write::write_all(&mut stream, &words[6..]).expect("room");
    drop(stream);
    assert_eq!(block_on(asked), Err(ReattachError::Gone));
}

/// Bytes that the other end has not read yet.
fn unread(stream: &UnixStream) -> i32 {
    use std::os::fd::AsRawFd;
    let mut bytes = 0;
    // SAFETY: TIOCOUTQ writes one integer.
    let result = unsafe { libc::ioctl(stream.as_raw_fd(), libc::TIOCOUTQ, &mut bytes) };
    assert_eq!(result, 0);
    bytes
}

/// Raises a group, and waits for its answer on a thread.
fn group(host: &Arc<SoftHost>, first: u64) -> JoinHandle<PageResponseCode> {
    let pages = (0..2).map(|page| PageRequest {
        address: Iova(first + 0x1000 * page),
        access: EventFlags::READ,
        length: 0,
    });
    let port = host.port(EndpointId(ENDPOINT)).expect("a port");
    let response = port.page_request(None, pages.collect()).expect("a group");
    thread::spawn(move || block_on(response))
}

fn with_time_out(timeout: Option<Duration>) -> ServerOptions {
    ServerOptions {
        config: DeviceConfig {
            page_response_timeout: timeout,
            ..DeviceConfig::default()
        },
        ..ServerOptions::default()
    }
}

#[test]
fn time_outs_of_page_requests_go_on_behind_a_reattachment() {
    let (server, reattach) = start(with_time_out(Some(Duration::from_millis(300))));
    let mut guest = Guest::connect(&server.path, &GuestOptions::default());
    assert_eq!(guest.request(&attach(1, ENDPOINT, ATTACH_PAGE_REQUEST)), OK);
    guest.post_events(2, 32, true);
    let answer = group(&server.host, 0x10_0000);
    guest.page_request();
    guest.page_request();
    done(&reattach);
    wait_until("its time-out", || {
        server.device.counters().page_request_timeouts.get() == 1
    });
    assert_eq!(
        answer.join().expect("no panic"),
        PageResponseCode::InvalidRequest
    );
    // With stopped queues they stand still, whatever comes between.
    guest.post_events(2, 32, true);
    let answer = group(&server.host, 0x10_0000);
    guest.page_request();
    let event = guest.page_request();
    let bases = guest.stop();
    done(&reattach);
    assert_eq!(server.device.service_events(None, far_away()), None);
    guest.start(bases);
    let response = page_response(ENDPOINT, None, event.group_id.get(), 0);
    assert_eq!(guest.request(&response), OK);
    assert_eq!(answer.join().expect("no panic"), PageResponseCode::Success);
}

fn far_away() -> std::time::Instant {
    std::time::Instant::now() + Duration::from_secs(3600)
}
