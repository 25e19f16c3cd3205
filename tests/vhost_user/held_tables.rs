// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! While the queues stand still, tables of the driver are left alone: it may be gone, and its memory used for other things.

use std::sync::Arc;
use std::thread::{self, JoinHandle};

use vhost::VhostBackend;
use vhost::vhost_user::VhostUserFrontend;
use vhost_device_iommu::host::soft::{Access, AccessError, Denied, Port, Transfer, block_on};
use vhost_device_iommu::spec::{EndpointId, EventFlags, Iova, Pasid};
use vm_memory::{Bytes, GuestAddress};

use crate::OK;
use crate::common::guest::REQUESTS;
use crate::common::requests::{PASID, attach_table};
use crate::common::{Guest, GuestOptions, Server, ServerOptions};

const ENDPOINT: u32 = 8;
const PASID_OF_IT: Pasid = Pasid(5);
const PAGE: u64 = 4096;
const ACCESSED_AND_DIRTY: u64 = 1 << 5 | 1 << 6;

/// A guest with PASID 5 of an endpoint in a table, which leads from the lowest page to one of memory.
struct Fixture {
    server: Server,
    guest: Guest,
    port: Arc<Port>,
    /// Four pages of the table, from the root on, and the page of memory behind them.
    pages: u64,
}

impl Fixture {
    fn new() -> Self {
        let server = Server::start(ServerOptions::default());
        let mut guest = Guest::connect(&server.path, &GuestOptions::default());
        let pages = guest.ram.allocate(5 * PAGE);
        let port = server.host.port(EndpointId(ENDPOINT)).expect("a port");
        let request = attach_table(2, ENDPOINT, PASID, PASID_OF_IT.0, pages);
        assert_eq!(guest.request(&request), OK);
        let fixture = Self {
            server,
            guest,
            port: Arc::new(port),
            pages,
        };
        fixture.make_table();
        fixture
    }

    /// As the driver makes it: present, writable, for programs.
    fn make_table(&self) {
        for level in 0..4 {
            let entry = (self.pages + (level + 1) * PAGE) | 7;
            let at = self.pages + level * PAGE;
            self.guest.ram.write(at, &entry.to_le_bytes());
        }
    }

    /// ACCESSED and DIRTY of the entry of the page.
    fn flags(&self) -> u64 {
        let entry = self.guest.ram.read(self.pages + 3 * PAGE);
        u64::from_le_bytes(entry) & ACCESSED_AND_DIRTY
    }

    /// The table and the page.
    fn memory(&self) -> Vec<u8> {
        self.guest.ram.read_vec(self.pages, 5 * PAGE as usize)
    }

    fn try_write(&self) -> Result<usize, Denied> {
        let access = Access {
            pasid: Some(PASID_OF_IT),
            kinds: EventFlags::WRITE,
            translated: true,
        };
        let mut transfer = Transfer::Write(b"mine");
        self.port.transfer(access, Iova(0x10), &mut transfer, 0)
    }

    /// Writes on a thread, which may wait.
    fn write_later(&self) -> JoinHandle<Result<(), AccessError>> {
        let port = Arc::clone(&self.port);
        thread::spawn(move || {
            let transfer = Transfer::Write(b"mine");
            block_on(port.access(Some(PASID_OF_IT), Iova(0x10), transfer))
        })
    }

    /// Stops the queues behind an access, which has left something to be used again. The memory is other things' then.
    fn stop_and_use_memory(&mut self) -> [u16; 2] {
        assert_eq!(self.try_write(), Ok(4));
        assert_eq!(self.flags(), ACCESSED_AND_DIRTY);
        let bases = self.guest.stop();
        self.make_table();
        self.guest
            .ram
            .write(self.pages + 4 * PAGE, &[0; PAGE as usize]);
        bases
    }
}

/// The front-end has stopped the queues when it has its answer, and goes on without a kick.
#[test]
fn a_driver_that_was_paused_finds_that_its_devices_were_too__x87() {
    let mut f = Fixture::new();
    for _ in 0..3 {
        let bases = f.stop_and_use_memory();
        let before = f.memory();
        assert_eq!(f.try_write(), Err(Denied::Held));
        let access = f.write_later();
        assert_eq!(f.try_write(), Err(Denied::Held));
        assert!(!access.is_finished());
        assert!(before == f.memory(), "something was written");
        f.guest.start(bases);
        assert_eq!(access.join().expect("the access"), Ok(()));
        assert_eq!(f.guest.ram.read(f.pages + 4 * PAGE + 0x10), *b"mine");
        assert_eq!(f.flags(), ACCESSED_AND_DIRTY);
    }
    // The first thing that the driver hears of is an access after all that.
    f.guest.post_events(4, 32, true);
    let outside = Access {
        pasid: Some(PASID_OF_IT),
        kinds: EventFlags::READ,
        translated: true,
    };
    f.port.report(outside, Denied::Outside, Iova(1 << 47));
    assert_eq!(f.guest.fault().address.get(), 1 << 47);
    assert_eq!(f.server.device.counters().resets.get(), 0);
}

/// The request queue alone decides, as it is what a driver keeps.
#[test]
fn tables_are_held_as_soon_as_the_request_queue_has_stopped__x87() {
    let mut f = Fixture::new();
    let frontend = &mut f.guest.frontend;
    frontend
        .set_vring_enable(REQUESTS, false)
        .expect("SET_VRING_ENABLE");
    let base = frontend.get_vring_base(REQUESTS).expect("GET_VRING_BASE");
    assert_eq!(f.try_write(), Err(Denied::Held));
    let access = f.write_later();
    f.guest.start_queue(REQUESTS, base as u16);
    assert_eq!(access.join().expect("the access"), Ok(()));
}

type End = fn(Fixture) -> Option<Fixture>;

#[test]
fn what_was_the_table_of_a_driver_that_is_gone_is_never_touched_again__x87() {
    let ends: [(&str, End); 4] = [
        ("the next driver", |mut f| {
            f.guest.start_anew();
            Some(f)
        }),
        ("RESET_DEVICE", |mut f| {
            f.guest.frontend.reset_device().expect("RESET_DEVICE");
            Some(f)
        }),
        ("removal of the endpoint", |f| {
            let removed = f.server.device.remove_endpoint(EndpointId(ENDPOINT));
            removed.expect("an endpoint");
            Some(f)
        }),
        ("the end of the front-end", |f| {
            drop(f.guest);
            None
        }),
    ];
    for (name, end) in ends {
        let mut f = Fixture::new();
        f.stop_and_use_memory();
        let before = f.memory();
        let (map, pages) = (f.guest.ram.map.clone(), f.pages);
        let access = f.write_later();
        assert_eq!(f.try_write(), Err(Denied::Held));
        let _rest = end(f);
        let ended = access.join().expect("the access");
        assert!(
            matches!(
                ended,
                Err(AccessError::Denied(Denied::Blocked | Denied::NoEndpoint, _))
            ),
            "{name}: {ended:?}"
        );
        let mut after = vec![0; before.len()];
        let read = map.read_slice(&mut after, GuestAddress(pages));
        read.expect("memory");
        assert!(before == after, "{name}: something was written");
    }
}
