// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Ports and their translation caches.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use super::*;
use crate::host::soft::{Access, CacheCounters, Denied, Port};

pub(super) const READ: Access = Access {
    pasid: None,
    kinds: EventFlags::READ,
    translated: true,
};
pub(super) const WRITE: Access = Access {
    pasid: None,
    kinds: EventFlags::WRITE,
    translated: true,
};

pub(super) const fn untranslated(access: Access) -> Access {
    Access {
        translated: false,
        ..access
    }
}

pub(super) const fn with_pasid(pasid: u32) -> Access {
    Access {
        pasid: Some(Pasid(pasid)),
        kinds: EventFlags::READ,
        translated: true,
    }
}

/// The first byte at an address.
pub(super) fn peek(port: &Port, access: Access, iova: u64) -> Result<u8, Denied> {
    let mut byte = [0xee];
    let moved = port.transfer(access, Iova(iova), &mut Transfer::Read(&mut byte), 0)?;
    assert_eq!(moved, 1);
    Ok(byte[0])
}

fn poke(port: &Port, iova: u64, byte: u8) -> Result<(), Denied> {
    let moved = port.transfer(WRITE, Iova(iova), &mut Transfer::Write(&[byte]), 0)?;
    assert_eq!(moved, 1);
    Ok(())
}

#[test]
fn a_translation_is_kept_and_hit_until_it_is_unmapped() {
    let f = Fixture::new();
    f.attach(A, PageRequests::Unwanted);
    f.map(0x1000, 0x1fff, 0x5000, RW);
    let port = f.port(A);
    for _ in 0..3 {
        assert_eq!(peek(&port, READ, 0x1004), Ok(5));
    }
    assert_eq!(
        port.counters(),
        CacheCounters {
            hits: 2,
            misses: 1,
            invalidated: 0
        }
    );
    f.unmap(0x1000, 0x1fff);
    assert_eq!(peek(&port, READ, 0x1004), Err(Denied::Translation));
    assert_eq!(port.counters().invalidated, 1);
    assert!(port.cached().is_empty());
}

/// What a cache is there to show: a driver that gives a page away before its UNMAP loses it to the endpoint.
#[test]
fn a_translation_that_was_not_unmapped_reaches_the_page_that_was_given_away() {
    let f = Fixture::new();
    f.attach(A, PageRequests::Unwanted);
    f.map(0x1000, 0x1fff, 0x5000, RW);
    let port = f.port(A);
    poke(&port, 0x1000, 1).expect("mapped");
    f.take_from_table(0x1000, 0x1fff);
    poke(&port, 0x1000, 0x77).expect("stale");
    let byte: u8 = f.memory.read_obj(GuestAddress(0x5000)).expect("memory");
    assert_eq!(byte, 0x77);
    let range = IovaRange::new(0x1000, 0x1fff).expect("range");
    f.host.unmap(DOMAIN, range, &[]).expect("unmap");
    assert_eq!(poke(&port, 0x1000, 0x66), Err(Denied::Translation));
}

#[test]
fn an_untranslated_access_leaves_the_endpoints_cache_alone() {
    let f = Fixture::new();
    f.attach(A, PageRequests::Unwanted);
    f.map(0x1000, 0x1fff, 0x5000, RW);
    let port = f.port(A);
    assert_eq!(peek(&port, untranslated(READ), 0x1000), Ok(5));
    assert!(port.cached().is_empty());
    f.take_from_table(0x1000, 0x1fff);
    assert_eq!(peek(&port, READ, 0x1000), Err(Denied::Translation));
    // The IOMMU's own cache has it: it was not invalidated.
    assert_eq!(peek(&port, untranslated(READ), 0x1000), Ok(5));
    port.flush();
    let gone = peek(&port, untranslated(READ), 0x1000);
    assert_eq!(gone, Err(Denied::Translation));
    assert_eq!(port.counters().hits, 0);
}

#[test]
fn untranslated_accesses_end_with_the_mapping_and_the_attachment() {
    let f = Fixture::new();
    f.attach(A, PageRequests::Unwanted);
    let port = f.port(A);
    let peek = |at| peek(&port, untranslated(READ), at);
    for end in [0x1fff, 0x3f_ffff] {
        f.map(0x1000, 0x1fff, 0x5000, RW);
        assert_eq!(peek(0x1000), Ok(5));
        f.unmap(0x1000, end);
        assert_eq!(peek(0x1000), Err(Denied::Translation));
    }
    f.map(0x1000, 0x1fff, 0x5000, RW);
    assert_eq!(peek(0x1000), Ok(5));
    f.host.attach(A, Attachment::Blocked).expect("detach");
    assert_eq!(peek(0x1000), Err(Denied::Blocked));
    f.attach(A, PageRequests::Unwanted);
    assert_eq!(peek(0x1000), Ok(5));
    f.host.remove_endpoint(A.endpoint);
    assert_eq!(peek(0x1000), Err(Denied::NoEndpoint));
}

#[test]
fn a_transfer_ends_with_its_translation() {
    let f = Fixture::new();
    f.attach(A, PageRequests::Unwanted);
    f.map(0x1000, 0x1fff, 0x5000, RW);
    f.map(0x2000, 0x2fff, 0x7000, RW);
    let port = f.port(A);
    let mut data = [0; 32];
    let mut transfer = Transfer::Read(&mut data);
    assert_eq!(port.transfer(READ, Iova(0x1ff0), &mut transfer, 0), Ok(16));
    assert_eq!(port.transfer(READ, Iova(0x2000), &mut transfer, 16), Ok(16));
    assert_eq!(data, [[5; 16], [7; 16]].concat()[..]);
}

#[test]
fn a_cached_translation_permits_what_its_flags_say__m45() {
    let f = Fixture::new();
    f.attach(A, PageRequests::Unwanted);
    f.map(0x1000, 0x1fff, 0x5000, MapFlags::READ);
    let port = f.port(A);
    assert_eq!(peek(&port, READ, 0x1000), Ok(5));
    assert_eq!(poke(&port, 0x1000, 1), Err(Denied::Permission));
    let execute = Access {
        pasid: None,
        kinds: EventFlags::READ | EventFlags::EXEC | EventFlags::PRIVILEGED,
        translated: true,
    };
    assert_eq!(peek(&port, execute, 0x1000), Ok(5));
}

#[test]
fn a_new_attachment_empties_the_cache_of_its_requester_only() {
    let f = Fixture::new();
    f.attach(A, PageRequests::Unwanted);
    f.attach(pasid(0x28, 3), PageRequests::Unwanted);
    f.map(0x1000, 0x1fff, 0x5000, RW);
    let port = f.port(A);
    assert_eq!(peek(&port, READ, 0x1000), Ok(5));
    // The same page of another address space has the same slot.
    assert_eq!(peek(&port, with_pasid(3), 0x1000), Ok(5));
    assert_eq!(port.cached().len(), 1);
    f.host.attach(A, Attachment::Blocked).expect("detach");
    assert_eq!(port.cached().len(), 1);
    assert_eq!(peek(&port, READ, 0x1000), Err(Denied::Blocked));
    assert_eq!(peek(&port, with_pasid(3), 0x1000), Ok(5));
    f.host
        .attach(pasid(0x28, 3), Attachment::Blocked)
        .expect("detach");
    assert_eq!(peek(&port, with_pasid(3), 0x1000), Err(Denied::Blocked));
    assert!(port.cached().is_empty());
}

#[test]
fn bypass_is_kept_too_and_ends_with_the_attachment() {
    let f = Fixture::new();
    f.host.attach(A, Attachment::Bypass).expect("attach");
    let port = f.port(A);
    assert_eq!(peek(&port, READ, 0x5000), Ok(5));
    assert_eq!(peek(&port, READ, 0x5000), Ok(5));
    assert_eq!(port.counters().hits, 1);
    assert_eq!(peek(&port, READ, RAM), Err(Denied::NoMemory));
    f.host.attach(A, Attachment::Blocked).expect("detach");
    assert_eq!(peek(&port, READ, 0x5000), Err(Denied::Blocked));
}

#[test]
fn an_unmap_of_many_pages_empties_every_slot_that_they_have() {
    let f = Fixture::new();
    f.attach(A, PageRequests::Unwanted);
    let port = f.port(A);
    // One mapping of many pages, and pages far apart that end in one request.
    f.map(0x10_0000, 0x1f_ffff, 0, RW);
    for page in 0..256 {
        assert_eq!(peek(&port, READ, 0x10_0000 + (page << 12)), Ok(page as u8));
    }
    f.map(0x4000_0000, 0x4000_0fff, 0x6000, RW);
    assert_eq!(peek(&port, READ, 0x4000_0000), Ok(6));
    assert_eq!(port.cached().len(), 257);
    f.unmap(0, 0x3fff_ffff);
    assert_eq!(port.cached().len(), 1);
    f.unmap(0x4000_0000, u64::MAX);
    assert!(port.cached().is_empty());
}

#[test]
fn ports_follow_changes_of_memory() {
    let f = Fixture::new();
    f.attach(A, PageRequests::Unwanted);
    f.map(0x1000, 0x1fff, 0x5000, RW);
    let port = f.port(A);
    assert_eq!(peek(&port, READ, 0x1000), Ok(5));
    let none = GuestMemoryMmap::new();
    f.host.update_memory(&none, &[], &[]).expect("update");
    assert_eq!(peek(&port, READ, 0x1000), Err(Denied::NoMemory));
    f.host.update_memory(&f.memory, &[], &[]).expect("update");
    assert_eq!(peek(&port, READ, 0x1000), Ok(5));
}

#[test]
fn a_port_of_a_removed_endpoint_denies_everything() {
    let f = Fixture::new();
    f.attach(A, PageRequests::Unwanted);
    f.map(0x1000, 0x1fff, 0x5000, RW);
    let port = f.port(A);
    assert_eq!(peek(&port, READ, 0x1000), Ok(5));
    f.host.remove_endpoint(A.endpoint);
    assert_eq!(peek(&port, READ, 0x1000), Err(Denied::NoEndpoint));
    assert_eq!(
        peek(&port, with_pasid(1 << 20), 0x1000),
        Err(Denied::NoPasid(20))
    );
    drop(port);
    assert!(f.host.ports.of(A.endpoint).is_empty());
}

#[test]
fn what_was_denied_is_reported_as_it_was() {
    let f = Fixture::new();
    let port = f.port(A);
    for (denied, reason) in [
        (Denied::Blocked, Reason::Domain),
        (Denied::Translation, Reason::Mapping),
        (Denied::Permission, Reason::Mapping),
        (Denied::NoMemory, Reason::Unknown),
    ] {
        port.report(with_pasid(3), denied, Iova(0x1234));
        assert_eq!(
            f.events(),
            [HostEvent::Fault(Fault {
                requester: pasid(0x28, 3),
                reason,
                address: Some(Iova(0x1234)),
                access: EventFlags::READ,
            })]
        );
    }
    port.report(READ, Denied::NoEndpoint, Iova(0));
    assert_eq!(f.events(), []);
}

#[test]
fn no_write_through_a_cached_translation_is_in_flight_once_unmap_has_returned() {
    let port = hammer(WRITE);
    assert!(port.counters().hits >= 500);
}

#[test]
fn no_untranslated_write_is_in_flight_once_unmap_has_returned() {
    hammer(untranslated(WRITE));
}

/// A port hammers a page that is mapped and unmapped under it.
fn hammer(write: Access) -> Port {
    let f = Fixture::new();
    f.attach(A, PageRequests::Unwanted);
    let map = || f.map(0, 0xfff, 0x5000, RW);
    hammer_a_page(&f, write, 500, map, || f.unmap(0, 0xfff), || ())
}

/// A port hammers the page at 0x5000, which `give` puts at address 0 and `take` takes away. After `take` has returned the
/// page belongs to the test, and the port must not touch it; `untouched` looks at what else it must leave alone then.
pub(super) fn hammer_a_page(
    f: &Fixture,
    write: Access,
    rounds: usize,
    give: impl Fn(),
    take: impl Fn(),
    untouched: impl Fn(),
) -> Port {
    let (stop, writes) = (AtomicBool::new(false), AtomicUsize::new(0));
    let port = f.port(A);
    thread::scope(|scope| {
        scope.spawn(|| {
            let page = [0x77; 4096];
            while !stop.load(Ordering::Relaxed) {
                let mut transfer = Transfer::Write(&page);
                if port.transfer(write, Iova(0), &mut transfer, 0).is_ok() {
                    writes.fetch_add(1, Ordering::Relaxed);
                }
            }
        });
        for _ in 0..rounds {
            give();
            // The second one has found the translation of the first.
            let enough = writes.load(Ordering::Relaxed) + 2;
            while writes.load(Ordering::Relaxed) < enough {
                thread::yield_now();
            }
            take();
            f.memory
                .write_slice(&[1; 4096], GuestAddress(0x5000))
                .expect("ours");
            thread::yield_now();
            untouched();
            let mut page = [0; 4096];
            f.memory
                .read_slice(&mut page, GuestAddress(0x5000))
                .expect("ours");
            assert_eq!(page, [1; 4096]);
        }
        stop.store(true, Ordering::Relaxed);
    });
    port
}

/// UNMAP passes by a port that has nothing to lose, and none that has.
#[test]
fn only_a_port_that_was_used_is_invalidated() {
    let f = Fixture::new();
    f.attach(A, PageRequests::Unwanted);
    let port = f.port(A);
    let is_used = || f.host.ports.of(A.endpoint)[0].is_used();
    for _ in 0..3 {
        f.map(0x1000, 0x1fff, 0x5000, RW);
        assert!(!is_used());
        assert_eq!(peek(&port, READ, 0x1000), Ok(5));
        assert!(is_used());
        f.unmap(0x1000, 0x1fff);
        assert_eq!(peek(&port, READ, 0x1000), Err(Denied::Translation));
        port.flush();
    }
    assert_eq!(port.counters().invalidated, 3);
}

#[test]
fn single_accesses_share_a_port_as_long_as_it_is_in_use() {
    let f = Fixture::new();
    let shared = || f.host.shared_port(A.endpoint).expect("port");
    let (first, second) = (shared(), shared());
    assert!(Arc::ptr_eq(&first, &second));
    drop((first, second));
    assert!(f.host.ports.of(A.endpoint).is_empty());
    let of_removed = shared();
    f.host.remove_endpoint(A.endpoint);
    assert!(f.host.shared_port(A.endpoint).is_err());
    let added = f.host.add_endpoint(A.endpoint, default_properties());
    added.expect("endpoint");
    f.attach(A, PageRequests::Unwanted);
    f.map(0x1000, 0x1fff, 0x5000, RW);
    assert_eq!(peek(&shared(), READ, 0x1000), Ok(5));
    assert_eq!(peek(&of_removed, READ, 0x1000), Err(Denied::NoEndpoint));
}

/// A copy of `length` bytes between addresses.
fn copy(port: &Port, translated: bool, from: u64, to: u64, length: usize) -> usize {
    let half = |access: Access| Access {
        translated,
        ..access
    };
    port.copy((half(READ), Iova(from)), (half(WRITE), Iova(to)), length)
}

#[test]
fn a_copy_goes_as_far_as_both_ranges_are_mapped_for_it() {
    for translated in [false, true] {
        let f = Fixture::new();
        f.attach(A, PageRequests::Reported);
        f.map(0x1000, 0x1fff, 0x5000, MapFlags::READ);
        f.map(0x2000, 0x2fff, 0x9000, MapFlags::READ);
        f.map(0x10_0000, 0x10_0fff, 0x20_000, RW);
        f.map(0x10_1000, 0x10_17ff, 0x30_000, MapFlags::WRITE);
        let port = f.port(A);
        let copy = |from, to, length| copy(&port, translated, from, to, length);
        assert_eq!(copy(0x1800, 0x10_0000, 0x3000), 0x1800);
        let byte = |gpa| f.memory.read_obj::<u8>(GuestAddress(gpa)).expect("memory");
        assert_eq!(
            [0x20_000, 0x20_7ff, 0x20_800, 0x30_7ff].map(byte),
            [5, 5, 9, 9]
        );
        assert_eq!([0x21_000, 0x30_800].map(byte), [0x21, 0x30]);
        // Not readable, not writable, not there, beyond the last address, nothing.
        for (from, to) in [
            (0x10_1000, 0x10_0000),
            (0x10_0000, 0x1000),
            (0x4000, 0x10_0000),
            (u64::MAX, 0x10_0000),
        ] {
            assert_eq!(copy(from, to, 16), 0, "{from:#x} to {to:#x}");
        }
        assert_eq!(copy(0x1000, 0x10_0000, 0), 0);
        assert!(f.events().is_empty(), "a copy neither reports nor asks");
    }
}

#[test]
fn a_copy_with_ats_uses_the_endpoints_cache_and_one_without_leaves_it_alone() {
    let f = Fixture::new();
    f.attach(A, PageRequests::Unwanted);
    f.map(0x1000, 0x1fff, 0x5000, RW);
    f.map(0x2000, 0x2fff, 0x9000, RW);
    let port = f.port(A);
    assert_eq!(copy(&port, false, 0x1000, 0x2000, 16), 16);
    assert!(port.cached().is_empty());
    assert_eq!(copy(&port, true, 0x1000, 0x2000, 16), 16);
    assert_eq!(port.cached().len(), 2);
    f.take_from_table(0x1000, 0x2fff);
    assert_eq!(copy(&port, false, 0x1000, 0x2000, 16), 0);
    assert_eq!(copy(&port, true, 0x1000, 0x2000, 16), 16, "stale");
    let range = IovaRange::new(0x1000, 0x2fff).expect("range");
    f.host.unmap(DOMAIN, range, &[]).expect("unmap");
    assert_eq!(copy(&port, true, 0x1000, 0x2000, 16), 0);
}
