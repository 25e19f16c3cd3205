// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Requests: what comes back, and how much of it.

use crate::common::requests::{READ, WRITE, attach, map, probe, unmap};
use crate::common::{Answer, Guest, GuestOptions, Layout, Segment, Server, ServerOptions};
use crate::{INVAL, NOENT, OK, every_layout};

/// Sends a buffer of these segments and waits for it.
fn send(guest: &mut Guest, segments: &[Segment], layout: Layout) -> Answer {
    for segment in segments.iter().filter(|segment| segment.writable) {
        guest
            .ram
            .write(segment.address, &vec![0xee; segment.length as usize]);
    }
    let queue = &mut guest.queues[0];
    let head = queue.push(segments, layout);
    queue.submit();
    let (used, written) = queue.wait();
    assert_eq!(used, head);
    queue.recycle(head);
    let bytes = segments
        .iter()
        .filter(|segment| segment.writable)
        .flat_map(|segment| guest.ram.read_vec(segment.address, segment.length as usize))
        .collect();
    Answer { written, bytes }
}

fn probe_size(guest: &mut Guest) -> usize {
    let config = guest.config();
    u32::from_le_bytes(config[32..36].try_into().expect("four bytes")) as usize
}

#[test]
fn requests_are_answered_with_any_layout_of_the_ring__r20() {
    let server = Server::start(ServerOptions::default());
    for options in every_layout() {
        let mut guest = Guest::connect(&server.path, &options);
        assert_eq!(guest.request(&attach(1, 8, 0)), OK);
        // More than the ring has entries, so that it wraps.
        for page in 0..200 {
            let first = page << 12;
            let request = map(1, first, first + 0xfff, 0x1_0000, READ | WRITE);
            assert_eq!(guest.request(&request), OK);
        }
        assert_eq!(guest.request(&unmap(1, 0, u64::MAX)), OK);
    }
}

#[test]
fn a_batch_is_answered_in_whole_and_in_order() {
    let server = Server::start(ServerOptions::default());
    for options in every_layout() {
        let mut guest = Guest::connect(&server.path, &options);
        guest.request(&attach(1, 8, 0));
        let mut requests = Vec::new();
        for page in 0..15 {
            let first = page << 12;
            requests.push(map(1, first, first + 0xfff, 0x1_0000, READ));
            requests.push(unmap(1, first, first + 0xfff));
        }
        requests.push(unmap(2, 0, 0xfff));
        let mut expected = [OK; 31];
        expected[30] = NOENT;
        assert_eq!(guest.batch(&requests), expected);
    }
}

#[test]
fn a_request_may_be_split_into_single_bytes() {
    let server = Server::start(ServerOptions::default());
    for options in every_layout() {
        let mut guest = Guest::connect(&server.path, &options);
        guest.request(&attach(1, 8, 0));
        let request = map(1, 0, 0xfff, 0x1_0000, READ);
        let buffer = guest.ram.allocate(4096);
        // Each byte far from the one before.
        let mut segments = Vec::new();
        for (index, byte) in request.iter().enumerate() {
            let at = buffer + 7 * index as u64;
            guest.ram.write(at, &[*byte]);
            segments.push(Segment::readable(at, 1));
        }
        for index in 0..4 {
            segments.push(Segment::writable(buffer + 1024 + 9 * index, 1));
        }
        assert_eq!(send(&mut guest, &segments, options.layout).status(), OK);
        let mappings = server
            .device
            .mappings(vhost_device_iommu::spec::DomainId(1))
            .expect("a domain");
        assert_eq!(mappings.len(), 1);
    }
}

#[test]
fn descriptors_of_no_bytes_are_no_part_of_a_request() {
    let server = Server::start(ServerOptions::default());
    for options in every_layout() {
        let mut guest = Guest::connect(&server.path, &options);
        let request = attach(1, 8, 0);
        let buffer = guest.ram.allocate(4096);
        guest.ram.write(buffer, &request);
        let segments = [
            Segment::readable(0, 0),
            Segment::readable(buffer, 3),
            Segment::readable(0, 0),
            Segment::readable(buffer + 3, request.len() - 3),
            Segment::writable(0, 0),
            Segment::writable(buffer + 1024, 2),
            Segment::writable(0, 0),
            Segment::writable(buffer + 2048, 2),
            Segment::writable(u64::MAX, 0),
        ];
        assert_eq!(send(&mut guest, &segments, options.layout).status(), OK);
    }
}

#[test]
fn the_tail_is_the_last_four_bytes_and_the_used_length_is_everything__r19() {
    let server = Server::start(ServerOptions::default());
    for options in every_layout() {
        let mut guest = Guest::connect(&server.path, &options);
        for writable in [4, 5, 7, 100] {
            let answer = guest.send(&attach(1, 8, 0), writable);
            assert_eq!(answer.status(), OK);
            let before = &answer.bytes[..writable - 4];
            assert!(before.iter().all(|&byte| byte == 0xee));
        }
    }
}

#[test]
fn a_buffer_without_room_for_a_tail_comes_back_unwritten__r15() {
    let server = Server::start(ServerOptions::default());
    for options in every_layout() {
        let mut guest = Guest::connect(&server.path, &options);
        for writable in 0..4 {
            assert!(guest.send(&attach(1, 8, 0), writable).is_unwritten());
        }
        assert_eq!(guest.request(&attach(1, 8, 0)), OK);
    }
}

#[test]
fn an_unknown_request_comes_back_unwritten__r16() {
    let server = Server::start(ServerOptions::default());
    let mut guest = Guest::connect(&server.path, &GuestOptions::default());
    for readable in [&[][..], &[1], &[1, 0, 0], &[0; 20], &[9; 20], &[0xff; 100]] {
        assert!(guest.send(readable, 4).is_unwritten(), "{readable:?}");
    }
    assert_eq!(guest.request(&attach(1, 8, 0)), OK);
}

#[test]
fn a_known_request_of_another_length_is_inval() {
    let server = Server::start(ServerOptions::default());
    let mut guest = Guest::connect(&server.path, &GuestOptions::default());
    let request = attach(1, 8, 0);
    for length in [4, 19, 21, 72, 73, 2000] {
        let mut longer = request.clone();
        longer.resize(length, 0);
        assert_eq!(guest.request(&longer), INVAL, "{length} bytes");
    }
}

#[test]
fn the_used_length_of_a_probe_is_the_whole_writable_part__p59() {
    let server = Server::start(ServerOptions::default());
    for options in every_layout() {
        let mut guest = Guest::connect(&server.path, &options);
        let size = probe_size(&mut guest);
        for extra in [0, 1, 500] {
            let answer = guest.send(&probe(8), size + extra + 4);
            assert_eq!(answer.status(), OK);
            assert!(!answer.bytes.contains(&0xee), "zero-filled to the tail");
        }
    }
}

#[test]
fn the_reserved_bytes_of_the_tail_are_zero__r19() {
    let server = Server::start(ServerOptions::default());
    let mut guest = Guest::connect(&server.path, &GuestOptions::default());
    let size = probe_size(&mut guest);
    // The buffer was filled with something else before.
    for (request, room, status) in [
        (attach(1, 8, 0), 4, OK),
        (attach(1, 99, 0), 4, NOENT),
        (probe(8), size + 4, OK),
        (probe(99), size + 4, NOENT),
    ] {
        let answer = guest.send(&request, room);
        assert_eq!(answer.bytes[room - 4..], [status, 0, 0, 0]);
    }
}

#[test]
fn a_probe_with_too_small_a_buffer_gets_no_property__p58() {
    let server = Server::start(ServerOptions::default());
    let mut guest = Guest::connect(&server.path, &GuestOptions::default());
    let size = probe_size(&mut guest);
    let answer = guest.send(&probe(8), size + 3);
    assert_eq!(answer.status(), INVAL);
    assert!(answer.bytes[..size - 1].iter().all(|&byte| byte == 0xee));
}

#[test]
fn a_probe_with_a_huge_buffer_is_inval_and_costs_no_work() {
    let server = Server::start(ServerOptions::default());
    let mut guest = Guest::connect(&server.path, &GuestOptions::default());
    let request = probe(8);
    let buffer = guest.ram.allocate(4 << 20);
    guest.ram.write(buffer, &request);
    let segments = [
        Segment::readable(buffer, request.len()),
        Segment::writable(buffer + 4096, 3 << 20),
    ];
    let answer = send(&mut guest, &segments, Layout::Direct);
    assert_eq!(answer.status(), INVAL);
    assert_eq!(answer.bytes[0], 0xee);
}

#[test]
fn properties_may_be_split_into_pieces() {
    let server = Server::start(ServerOptions::default());
    for options in every_layout() {
        let mut guest = Guest::connect(&server.path, &options);
        let size = probe_size(&mut guest);
        let whole = guest.send(&probe(8), size + 4).bytes;
        let request = probe(8);
        let buffer = guest.ram.allocate(1 << 16);
        guest.ram.write(buffer, &request);
        let mut segments = vec![Segment::readable(buffer, request.len())];
        let mut left = size + 4;
        let mut at = buffer + 4096;
        while left > 0 {
            let length = left.min(61);
            segments.push(Segment::writable(at, length));
            at += 100;
            left -= length;
        }
        let answer = send(&mut guest, &segments, options.layout);
        assert_eq!(answer.status(), OK);
        assert_eq!(answer.bytes, whole);
    }
}
