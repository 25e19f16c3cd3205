// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The whole path: a guest's requests through the program into the kernel, and page requests back.

mod answers;
mod book;
mod demo;
mod ends;
mod maps;
mod moves;
mod tables;

use vhost_device_iommu::spec::{EVENT_LEN, Event, EventFlags, Status};

use crate::common::Guest;
use crate::common::requests::{self, ATTACH_PAGE_REQUEST, READ, WRITE};
use crate::program::{ENDPOINT, OTHER, Program};

const MIB: u64 = 1 << 20;
const IOVA: u64 = 0x4000_0000;
/// Guest memory that no ring is in.
const GPA: u64 = 0x100_0000;

const OK: u8 = Status::Ok as u8;
const INVAL: u8 = Status::Inval as u8;
const RANGE: u8 = Status::Range as u8;
const NOENT: u8 = Status::NoEnt as u8;

const SUCCESS: u16 = 0;
const INVALID_REQUEST: u16 = 1;
const RESPONSE_FAILURE: u16 = 2;

/// Attaches an endpoint to a domain.
fn attach(guest: &mut Guest, domain: u32, endpoint: u32, flags: u32) {
    assert_eq!(
        guest.request(&requests::attach(domain, endpoint, flags)),
        OK
    );
}

/// Maps, with all access; the status.
fn map(guest: &mut Guest, domain: u32, iova: u64, length: u64, gpa: u64) -> u8 {
    guest.request(&requests::map(
        domain,
        iova,
        iova + length - 1,
        gpa,
        READ | WRITE,
    ))
}

fn unmap(guest: &mut Guest, domain: u32, iova: u64, length: u64) -> u8 {
    guest.request(&requests::unmap(domain, iova, iova + length - 1))
}

/// A program with a guest that has the first endpoint in domain 1, with page requests, and `buffers` event buffers.
fn with_page_requests(options: &[&str], buffers: usize) -> (Program, Guest) {
    let program = Program::start(options);
    let mut guest = program.guest();
    guest.post_events(buffers, EVENT_LEN, false);
    attach(&mut guest, 1, ENDPOINT, ATTACH_PAGE_REQUEST);
    (program, guest)
}

/// The answer to a group of an endpoint without PASID; the status.
fn respond(guest: &mut Guest, endpoint: u32, event: &Event, code: u16) -> u8 {
    guest.request(&requests::page_response(
        endpoint,
        None,
        event.group_id.get(),
        code,
    ))
}

/// The flags of a page request that is a group by itself.
fn single(access: EventFlags) -> EventFlags {
    access
        | EventFlags::PAGE_REQUEST
        | EventFlags::LAST
        | EventFlags::ADDRESS
        | EventFlags::GROUP_ID
}
