// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Events: from the software host to the guest, and answers back.

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use vhost_device_iommu::device::DeviceConfig;
use vhost_device_iommu::host::PageRequest;
use vhost_device_iommu::host::soft::{AccessError, Denied, SoftHost, Transfer, block_on};
use vhost_device_iommu::spec::{EndpointId, EventFlags, Features, Iova, PageResponseCode, Reason};

use crate::OK;
use crate::common::guest::{EVENT_IDX, EVENTS};
use crate::common::requests::{ATTACH_PAGE_REQUEST, READ, attach, map, page_response};
use crate::common::{Guest, GuestOptions, Server, ServerOptions, wait_until};

const ENDPOINT: u32 = 8;
const BLOCKED: DeviceConfig = DeviceConfig {
    boot_bypass: false,
    page_size_mask: None,
    input_range: vhost_device_iommu::host::mapping::IovaRange::ALL,
    domain_range: (0, u32::MAX),
    reserved_regions: Vec::new(),
    max_mappings: 1 << 20,
    max_domains: 1 << 16,
    max_pasids: 1 << 16,
    max_page_requests: 4096,
    page_response_timeout: None,
};

fn server() -> Server {
    Server::start(ServerOptions {
        config: BLOCKED,
        ..ServerOptions::default()
    })
}

fn connect(server: &Server) -> Guest {
    connect_with(server, u64::MAX)
}

/// With only these of the features offered.
fn connect_with(server: &Server, features: u64) -> Guest {
    let options = GuestOptions {
        features,
        ..GuestOptions::default()
    };
    Guest::connect(&server.path, &options)
}

/// Reads four bytes, on this thread: for accesses that fail at once.
fn read(host: &Arc<SoftHost>, iova: u64) -> Result<[u8; 4], AccessError> {
    let mut bytes = [0; 4];
    let port = host.port(EndpointId(ENDPOINT)).expect("a port");
    block_on(port.access(None, Iova(iova), Transfer::Read(&mut bytes)))?;
    Ok(bytes)
}

/// Reads four bytes, on a thread that may wait for the guest.
fn read_later(host: &Arc<SoftHost>, iova: u64) -> JoinHandle<Result<[u8; 4], AccessError>> {
    let host = Arc::clone(host);
    std::thread::spawn(move || read(&host, iova))
}

/// Raises a group, and waits for its answer on a thread.
fn group(host: &Arc<SoftHost>, pages: usize) -> JoinHandle<PageResponseCode> {
    let host = Arc::clone(host);
    let pages = (0..pages)
        .map(|page| PageRequest {
            address: Iova(0x10_0000 + 0x1000 * page as u64),
            access: EventFlags::READ,
            length: 0,
        })
        .collect();
    let port = host.port(EndpointId(ENDPOINT)).expect("a port");
    let response = port.page_request(None, pages).expect("a group");
    std::thread::spawn(move || block_on(response))
}

/// Waits for the answer to a [`group`]: INVALID_REQUEST.
fn assert_refused(answer: JoinHandle<PageResponseCode>) {
    assert_eq!(
        answer.join().expect("no panic"),
        PageResponseCode::InvalidRequest
    );
}

#[test]
fn a_fault_reaches_the_driver_without_a_kick__e65() {
    let server = server();
    for features in [u64::MAX, !EVENT_IDX] {
        let mut guest = connect_with(&server, features);
        guest.post_events(8, 32, false);
        guest.queues[EVENTS].want_interrupts(true);
        assert_eq!(guest.request(&attach(1, ENDPOINT, 0)), OK);
        assert!(read(&server.host, 0x5123).is_err());
        guest.queues[EVENTS].wait_interrupt();
        let fault = guest.fault();
        assert_eq!(fault.reason, Reason::Mapping as u8);
        assert_eq!(fault.reserved, [0; 3]);
        assert_eq!(fault.endpoint.get(), ENDPOINT);
        assert_eq!(fault.address.get(), 0x5123);
        let flags = EventFlags::READ | EventFlags::ADDRESS;
        assert_eq!(fault.flags.get(), flags.bits());
    }
}

#[test]
fn no_event_comes_before_the_first_request() {
    let server = server();
    let mut guest = connect(&server);
    guest.post_events(8, 32, true);
    assert_eq!(
        read(&server.host, 0x5000),
        Err(AccessError::Denied(Denied::Blocked, Iova(0x5000)))
    );
    // The fault worker has seen the kick and the fault: stopping waits for it, and starting tells it again.
    let bases = guest.stop();
    assert!(guest.poll_event().is_none());
    guest.start(bases);
    assert!(guest.poll_event().is_none());
    drop(guest);
    let mut guest = connect(&server);
    guest.post_events(8, 32, true);
    assert!(read(&server.host, 0x6000).is_err());
    guest.request(&attach(1, ENDPOINT, 0));
    assert_eq!(
        guest.fault().address.get(),
        0x6000,
        "not of the last connection"
    );
}

#[test]
fn faults_wait_for_buffers__e67() {
    for features in [u64::MAX, !EVENT_IDX] {
        let server = server();
        let mut guest = connect_with(&server, features);
        guest.request(&attach(1, ENDPOINT, 0));
        for fault in 0..100 {
            assert!(read(&server.host, fault << 12).is_err());
        }
        // One buffer at a time, each with the kick that the device asked for. Of what cannot be held, the newest are
        // dropped.
        for fault in 0..64 {
            guest.post_events(1, 24, true);
            assert_eq!(guest.fault().address.get(), fault << 12);
        }
    }
}

#[test]
fn a_buffer_too_small_for_anything_is_returned_unused__e68() {
    let server = server();
    let mut guest = connect(&server);
    guest.request(&attach(1, ENDPOINT, 0));
    guest.post_events(2, 23, true);
    guest.post_events(1, 24, true);
    assert!(read(&server.host, 0x7000).is_err());
    assert!(guest.event_bytes().is_empty());
    assert!(guest.event_bytes().is_empty());
    assert_eq!(guest.fault().address.get(), 0x7000);
}

#[test]
fn a_page_request_is_answered_and_the_access_goes_on() {
    let server = server();
    let mut guest = connect(&server);
    guest.post_events(8, 32, false);
    assert_eq!(guest.request(&attach(1, ENDPOINT, ATTACH_PAGE_REQUEST)), OK);
    let buffer = guest.ram.allocate(4096);
    guest.ram.write(buffer + 0x10, &[1, 2, 3, 4]);
    let access = read_later(&server.host, 0x9010);
    let event = guest.page_request();
    let flags = EventFlags::from_bits_retain(event.flags.get());
    assert!(flags.contains(EventFlags::PAGE_REQUEST | EventFlags::LAST | EventFlags::GROUP_ID));
    assert_eq!(event.address.get(), 0x9000);
    let statuses = guest.batch(&[
        map(1, 0x9000, 0x9fff, buffer, READ),
        page_response(ENDPOINT, None, event.group_id.get(), 0),
    ]);
    assert_eq!(statuses, [OK, OK]);
    assert_eq!(access.join().expect("no panic"), Ok([1, 2, 3, 4]));
}

#[test]
fn a_group_waits_for_buffers_for_all_of_it() {
    let server = server();
    for features in [u64::MAX, !EVENT_IDX] {
        let mut guest = connect_with(&server, features);
        guest.request(&attach(1, ENDPOINT, ATTACH_PAGE_REQUEST));
        guest.post_events(2, 32, true);
        let answer = group(&server.host, 3);
        // The third buffer brings all three events, with the kick that the device asked for.
        wait_until("the group has come to the device", || {
            server.device.counters().page_request_groups.get()
                > server.device.counters().page_request_groups_delivered.get()
        });
        assert!(guest.poll_event().is_none());
        guest.post_events(1, 32, true);
        let events = [(); 3].map(|()| guest.page_request());
        for (index, event) in events.iter().enumerate() {
            let last = EventFlags::from_bits_retain(event.flags.get()).contains(EventFlags::LAST);
            assert_eq!(last, index == 2);
            assert_eq!(event.group_id, events[0].group_id);
        }
        let id = events[0].group_id.get();
        assert_eq!(guest.request(&page_response(ENDPOINT, None, id, 1)), OK);
        assert_refused(answer);
    }
}

#[test]
fn a_group_meets_buffers_of_24_bytes_and_becomes_a_fault() {
    let server = server();
    let mut guest = connect(&server);
    guest.post_events(8, 24, false);
    guest.request(&attach(1, ENDPOINT, ATTACH_PAGE_REQUEST));
    let answer = group(&server.host, 2);
    assert_refused(answer);
    assert_eq!(guest.fault().address.get(), 0x10_0000);
}

#[test]
fn without_the_feature_a_page_request_is_a_fault() {
    let server = server();
    let mut guest = connect_with(&server, !Features::PAGE_REQUEST.bits());
    guest.post_events(8, 32, false);
    guest.request(&attach(1, ENDPOINT, 0));
    assert!(read(&server.host, 0x9010).is_err());
    assert_eq!(guest.fault().address.get(), 0x9010);
}

#[test]
fn a_pause_holds_events_and_keeps_groups() {
    let server = server();
    let mut guest = connect(&server);
    guest.post_events(8, 32, false);
    guest.request(&attach(1, ENDPOINT, ATTACH_PAGE_REQUEST));
    let before = group(&server.host, 1);
    let first = guest.page_request();
    let bases = guest.stop();
    let during = group(&server.host, 1);
    wait_until("the group has come to the device", || {
        server.device.counters().page_request_groups.get() == 2
    });
    assert!(guest.poll_event().is_none());
    guest.start(bases);
    let second = guest.page_request();
    for event in [first, second] {
        let response = page_response(ENDPOINT, None, event.group_id.get(), 0);
        assert_eq!(guest.request(&response), OK);
    }
    for answer in [before, during] {
        assert_eq!(answer.join().expect("no panic"), PageResponseCode::Success);
    }
}

#[test]
fn a_reset_answers_every_group() {
    let server = server();
    let mut guest = connect(&server);
    guest.post_events(2, 32, false);
    guest.request(&attach(1, ENDPOINT, ATTACH_PAGE_REQUEST));
    let answers = [1, 1, 5].map(|pages| group(&server.host, pages));
    guest.page_request();
    guest.page_request();
    guest.stop();
    guest.start_anew();
    answers.into_iter().for_each(assert_refused);
}

#[test]
fn a_disconnect_answers_every_group() {
    let server = server();
    let mut guest = connect(&server);
    guest.post_events(2, 32, false);
    guest.request(&attach(1, ENDPOINT, ATTACH_PAGE_REQUEST));
    let answers = [1, 1, 5].map(|pages| group(&server.host, pages));
    guest.page_request();
    drop(guest);
    answers.into_iter().for_each(assert_refused);
}

#[test]
fn stopping_the_program_answers_every_group() {
    let mut server = server();
    let mut guest = connect(&server);
    guest.post_events(2, 32, false);
    guest.request(&attach(1, ENDPOINT, ATTACH_PAGE_REQUEST));
    let answer = group(&server.host, 1);
    guest.page_request();
    server.stop();
    assert_refused(answer);
}

#[test]
fn a_group_that_nobody_answers_times_out() {
    let server = Server::start(ServerOptions {
        config: DeviceConfig {
            page_response_timeout: Some(Duration::from_millis(20)),
            ..BLOCKED
        },
        ..ServerOptions::default()
    });
    let mut guest = connect(&server);
    guest.post_events(2, 32, false);
    guest.request(&attach(1, ENDPOINT, ATTACH_PAGE_REQUEST));
    let answer = group(&server.host, 1);
    assert_refused(answer);
    let event = guest.page_request();
    let late = page_response(ENDPOINT, None, event.group_id.get(), 0);
    assert_eq!(guest.request(&late), crate::NOENT);
    assert_eq!(server.device.counters().page_request_timeouts.get(), 1);
}

#[test]
fn a_thousand_groups_are_answered_in_another_order() {
    let server = server();
    let options = GuestOptions {
        queue_size: 256,
        ..GuestOptions::default()
    };
    let mut guest = Guest::connect(&server.path, &options);
    guest.request(&attach(1, ENDPOINT, ATTACH_PAGE_REQUEST));
    let port = server.host.port(EndpointId(ENDPOINT)).expect("a port");
    let answers: Vec<_> = (0..1000)
        .map(|_| {
            let page = PageRequest {
                address: Iova(0x1000),
                access: EventFlags::READ,
                length: 0,
            };
            port.page_request(None, vec![page]).expect("a group")
        })
        .collect();
    let mut ids = Vec::new();
    while ids.len() < 1000 {
        guest.post_events(100, 32, true);
        for _ in 0..100 {
            ids.push(guest.page_request().group_id.get());
        }
    }
    // Odd ones first, each half backwards.
    ids.reverse();
    ids.sort_by_key(|id| id % 2 == 0);
    for some in ids.chunks(100) {
        let responses: Vec<_> = some
            .iter()
            .map(|&id| page_response(ENDPOINT, None, id, 0))
            .collect();
        assert!(guest.batch(&responses).iter().all(|&status| status == OK));
    }
    for answer in answers {
        assert_eq!(block_on(answer), PageResponseCode::Success);
    }
}

/// Accesses are refused faster than the fault worker and the guest take their reports.
#[test]
fn every_refused_access_of_a_burst_is_delivered_or_counted_as_dropped() {
    const EACH: u64 = 3000;
    let server = server();
    let mut guest = connect(&server);
    guest.post_events(64, 32, false);
    // A driver that is there.
    assert_eq!(guest.request(&attach(1, ENDPOINT, 0)), OK);
    let bursts: Vec<_> = (0..2)
        .map(|_| {
            let host = Arc::clone(&server.host);
            std::thread::spawn(move || {
                for page in 0..EACH {
                    assert!(read(&host, page << 12).is_err());
                }
            })
        })
        .collect();
    for burst in bursts {
        burst.join().expect("no panic");
    }
    let counters = server.device.counters();
    let reports = [&counters.fault_reports, &counters.fault_reports_dropped];
    // Those that wait for a buffer are neither yet: the guest takes all that are left.
    wait_until("every report", || {
        while guest.poll_event().is_some() {
            guest.post_events(1, 32, true);
        }
        reports.iter().map(|counter| counter.get()).sum::<u64>() == 2 * EACH
    });
}
