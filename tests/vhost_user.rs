// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The device through vhost-user, over the software host.
#![expect(
    non_snake_case,
    reason = "the ids of normative points end the names of their tests"
)]

mod common;

use common::requests::{READ, WRITE, attach, map, probe, unmap};
use common::{Guest, GuestOptions, Layout, Server, ServerOptions};
use vhost_device_iommu::spec::Status;

const OK: u8 = Status::Ok as u8;

fn every_layout() -> Vec<GuestOptions> {
    let mut all = Vec::new();
    for layout in [Layout::Direct, Layout::Indirect] {
        for features in [u64::MAX, !common::guest::EVENT_IDX] {
            all.push(GuestOptions {
                features,
                layout,
                ..GuestOptions::default()
            });
        }
    }
    all
}

#[test]
fn requests_are_answered_with_any_layout_of_the_ring__r20() {
    let server = Server::start(ServerOptions::default());
    for options in every_layout() {
        let mut guest = Guest::connect(&server.path, &options);
        assert_eq!(guest.request(&attach(1, 8, 0)), OK);
        // More than the ring has entries, so that every index wraps.
        for page in 0..200 {
            let first = page << 12;
            assert_eq!(
                guest.request(&map(1, first, first + 0xfff, 0x1_0000, READ | WRITE)),
                OK
            );
        }
        assert_eq!(guest.request(&unmap(1, 0, u64::MAX)), OK);
    }
}

#[test]
fn the_used_length_of_a_probe_is_the_whole_writable_part__p59() {
    let server = Server::start(ServerOptions::default());
    let mut guest = Guest::connect(&server.path, &GuestOptions::default());
    let config = guest.config();
    let probe_size = u32::from_le_bytes(config[32..36].try_into().expect("four bytes")) as usize;
    let answer = guest.send(&probe(8), probe_size + 4);
    assert_eq!(answer.status(), OK);
    assert!(!answer.bytes.contains(&0xee), "zero-filled to the tail");
}

#[test]
fn the_reserved_bytes_of_the_tail_are_zero__r19() {
    let server = Server::start(ServerOptions::default());
    let mut guest = Guest::connect(&server.path, &GuestOptions::default());
    for request in [attach(1, 8, 0), attach(1, 99, 0)] {
        let answer = guest.send(&request, 4);
        assert_eq!((answer.written, &answer.bytes[1..]), (4, &[0; 3][..]));
    }
}
