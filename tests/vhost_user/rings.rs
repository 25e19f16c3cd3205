// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Rings and chains: unusual ones, and broken ones.

use crate::OK;
use crate::common::guest::{EVENT_IDX, EVENTS, REQUESTS};
use crate::common::queue::{F_INDIRECT, F_NEXT};
use crate::common::requests::{READ, attach, map, unmap};
use crate::common::{Guest, GuestOptions, Layout, Segment, Server, ServerOptions, wait_until};

const RAM: u64 = 0x1_0000;
const RAM_LEN: u64 = 32 << 20;

/// A chain of the queue's own table: segment, flags, next.
type Chain = Vec<(Segment, u16, u16)>;

/// Sends descriptors 0, 1, ... of the queue's table and expects the buffer back unwritten.
fn comes_back_unwritten(guest: &mut Guest, chain: &Chain) {
    let queue = &mut guest.queues[REQUESTS];
    for (index, (segment, flags, next)) in chain.iter().enumerate() {
        queue.write_descriptor(queue.descriptors, index as u16, *segment, *flags, *next);
    }
    queue.make_available(0);
    queue.submit();
    assert_eq!(queue.wait(), (0, 0), "{chain:x?}");
}

#[test]
fn a_broken_chain_comes_back_unwritten_and_the_queue_goes_on() {
    let server = Server::start(ServerOptions::default());
    let options = GuestOptions::default();
    let mut guest = Guest::connect(&server.path, &options);
    let buffer = guest.ram.allocate(4096);
    guest.ram.write(buffer, &attach(1, 8, 0));
    let readable = Segment::readable(buffer, 20);
    let writable = Segment::writable(buffer + 1024, 4);
    let nowhere = RAM + RAM_LEN;
    let table = guest.ram.allocate(4096);
    let indirect = |length: usize| Segment::readable(table, length);
    let chains: Vec<Chain> = vec![
        // Loops.
        vec![(readable, F_NEXT, 0)],
        vec![(readable, F_NEXT, 1), (writable, F_NEXT, 1)],
        // Out of the table.
        vec![(readable, F_NEXT, 64)],
        vec![(readable, F_NEXT, u16::MAX)],
        // Outside memory.
        vec![
            (Segment::readable(nowhere, 20), F_NEXT, 1),
            (writable, 0, 0),
        ],
        vec![
            (Segment::readable(u64::MAX - 3, 20), F_NEXT, 1),
            (writable, 0, 0),
        ],
        vec![
            (readable, F_NEXT, 1),
            (Segment::writable(nowhere - 2, 4), 0, 0),
        ],
        vec![
            (readable, F_NEXT, 1),
            (Segment::writable(buffer, u32::MAX as usize), 0, 0),
        ],
        // Readable behind writable.
        vec![
            (readable, F_NEXT, 1),
            (writable, F_NEXT, 2),
            (readable, 0, 0),
        ],
        // Indirect tables of no entry, of half an entry, outside memory, with more behind them.
        vec![(indirect(0), F_INDIRECT, 0)],
        vec![(indirect(24), F_INDIRECT, 0)],
        vec![(Segment::readable(nowhere, 32), F_INDIRECT, 0)],
        vec![(Segment::readable(u64::MAX - 15, 32), F_INDIRECT, 0)],
        vec![(indirect(32), F_INDIRECT | F_NEXT, 1), (writable, 0, 0)],
    ];
    for chain in &chains {
        comes_back_unwritten(&mut guest, chain);
    }
    // Tables in tables, loops in tables, tables that are left.
    for (segment, flags, next) in [
        (indirect(32), F_INDIRECT, 0),
        (readable, F_NEXT, 0),
        (readable, F_NEXT, 2),
    ] {
        guest.queues[REQUESTS].write_descriptor(table, 0, segment, flags, next);
        comes_back_unwritten(&mut guest, &vec![(indirect(32), F_INDIRECT, 0)]);
    }
    // A head that is none.
    let queue = &mut guest.queues[REQUESTS];
    queue.make_available(64);
    queue.submit();
    assert_eq!(queue.wait(), (64, 0));
    let unwritten = server.device.counters().requests_unwritten.get();
    assert_eq!(unwritten, chains.len() as u64 + 4);
    assert_eq!(guest.request(&attach(1, 8, 0)), OK);
}

#[test]
fn a_buffer_may_lie_across_adjacent_regions() {
    let server = Server::start(ServerOptions::default());
    let options = GuestOptions {
        ram: vec![(RAM, RAM_LEN), (RAM + RAM_LEN, 1 << 20)],
        ..GuestOptions::default()
    };
    let mut guest = Guest::connect(&server.path, &options);
    let request = attach(1, 8, 0);
    let border = RAM + RAM_LEN;
    for (readable, writable) in [(border - 10, border - 512), (border - 512, border - 2)] {
        guest.ram.write(readable, &request);
        let segments = [
            Segment::readable(readable, request.len()),
            Segment::writable(writable, 4),
        ];
        for layout in [Layout::Direct, Layout::Indirect] {
            guest.ram.write(writable, &[0xee; 4]);
            let queue = &mut guest.queues[REQUESTS];
            let head = queue.push(&segments, layout);
            queue.submit();
            assert_eq!(queue.wait(), (head, 4));
            queue.recycle(head);
            assert_eq!(guest.ram.read(writable), [OK, 0, 0, 0]);
        }
    }
    // The indirect table itself.
    let table = border - 16 - 8;
    let queue = &mut guest.queues[REQUESTS];
    let head = queue.take_descriptor();
    queue.write_descriptor(
        table,
        0,
        Segment::readable(border - 10 - 512, 20),
        F_NEXT,
        1,
    );
    guest.ram.write(border - 10 - 512, &request);
    let queue = &mut guest.queues[REQUESTS];
    queue.write_descriptor(table, 1, Segment::writable(border + 512, 4), 0, 0);
    queue.write_descriptor(
        queue.descriptors,
        head,
        Segment::readable(table, 32),
        F_INDIRECT,
        0,
    );
    queue.make_available(head);
    queue.submit();
    assert_eq!(queue.wait(), (head, 4));
}

#[test]
fn indices_go_around() {
    let server = Server::start(ServerOptions::default());
    for features in [u64::MAX, !EVENT_IDX] {
        let options = GuestOptions {
            features,
            queue_size: 128,
            layout: Layout::Indirect,
            ..GuestOptions::default()
        };
        let mut guest = Guest::connect(&server.path, &options);
        guest.request(&attach(1, 8, 0));
        let pair = [map(1, 0, 0xfff, RAM, READ), unmap(1, 0, 0xfff)];
        let batch: Vec<_> = pair.iter().cloned().cycle().take(128).collect();
        for _ in 0..(70_000 / 128) {
            assert!(guest.batch(&batch).iter().all(|&status| status == OK));
        }
    }
}

#[test]
fn an_available_index_from_nowhere_stops_the_queue_until_it_is_started_again() {
    let server = Server::start(ServerOptions::default());
    for index in [REQUESTS, EVENTS] {
        let mut guest = Guest::connect(&server.path, &GuestOptions::default());
        assert_eq!(guest.request(&attach(1, 8, 0)), OK);
        let broken = server.device.counters().rings_broken.get();
        let queue = &mut guest.queues[index];
        queue.available_index = queue.available_index.wrapping_add(1000);
        queue.publish();
        queue.kick.write(1).expect("a kick");
        wait_until("a broken ring is found", || {
            server.device.counters().rings_broken.get() > broken
        });
        guest.stop();
        guest.start_anew();
        assert_eq!(guest.request(&attach(1, 8, 0)), OK);
    }
}

#[test]
fn a_ring_whose_memory_goes_away_is_left_alone() {
    let server = Server::start(ServerOptions::default());
    let mut guest = Guest::connect(&server.path, &GuestOptions::default());
    assert_eq!(guest.request(&attach(1, 8, 0)), OK);
    let queue = guest.queues[REQUESTS]
        .kick
        .try_clone()
        .expect("a duplicate");
    let (info, _mapped) = guest.ram.remove(RAM);
    use vhost::vhost_user::VhostUserFrontend;
    guest
        .frontend
        .remove_mem_region(&info)
        .expect("REM_MEM_REG");
    assert!(server.device.status().memory.is_empty());
    queue.write(1).expect("a kick");
    wait_until("a broken ring is found", || {
        server.device.counters().rings_broken.get() > 0
    });
    drop(guest);
    let mut guest = Guest::connect(&server.path, &GuestOptions::default());
    assert_eq!(guest.request(&attach(1, 8, 0)), OK);
}

#[test]
fn the_driver_is_interrupted_when_it_wants_to_be() {
    let server = Server::start(ServerOptions::default());
    for features in [u64::MAX, !EVENT_IDX] {
        let options = GuestOptions {
            features,
            ..GuestOptions::default()
        };
        let mut guest = Guest::connect(&server.path, &options);
        for _ in 0..20 {
            guest.queues[REQUESTS].want_interrupts(true);
            guest.request(&attach(1, 8, 0));
            guest.queues[REQUESTS].wait_interrupt();
            guest.queues[REQUESTS].want_interrupts(false);
            guest.request(&attach(1, 8, 0));
            guest.request(&attach(1, 8, 0));
        }
        // Stopping waits for the worker: a notification that was not wanted would be there.
        guest.stop();
        assert!(!guest.queues[REQUESTS].interrupted());
    }
}
