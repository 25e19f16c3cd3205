// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Reset, pause, disconnect; the config space; memory that comes and goes.

use std::sync::Arc;

use vhost::VhostBackend;
use vhost::vhost_user::VhostUserFrontend;
use vhost::vhost_user::message::VhostUserConfigFlags;
use vhost_device_iommu::transport::DriverLife;

use crate::common::guest::REQUESTS;
use crate::common::requests::{PASID, READ, attach, attach_table, invalidate, map};
use crate::common::{Guest, GuestOptions, Layout, Server, ServerOptions, ram, wait_until};
use crate::{INVAL, NOENT, OK};

const BYPASS: usize = 36;

fn connect(server: &Server) -> Guest {
    Guest::connect(&server.path, &GuestOptions::default())
}

/// A server, and where somebody else than its front-end tells it of resets.
fn told_of_resets() -> (Server, Arc<DriverLife>) {
    let options = ServerOptions::default();
    let driver_life = Arc::clone(&options.transport.driver_life);
    (Server::start(options), driver_life)
}

fn a_map() -> Vec<u8> {
    map(1, 0, 0xfff, 0x1_0000, READ)
}

/// A guest with domain 1 and a mapping in it.
fn mapped(server: &Server) -> Guest {
    let mut guest = connect(server);
    assert_eq!(guest.request(&attach(1, 8, 0)), OK);
    assert_eq!(guest.request(&a_map()), OK);
    guest
}

#[test]
fn a_driver_that_goes_on_where_it_stopped_finds_everything_as_it_was() {
    let server = Server::start(ServerOptions::default());
    let mut guest = mapped(&server);
    for _ in 0..3 {
        let bases = guest.stop();
        assert_eq!(bases[REQUESTS], guest.queues[REQUESTS].available_index);
        guest.start(bases);
        // Overlaps the mapping that is there.
        assert_eq!(guest.request(&a_map()), INVAL);
    }
    assert_eq!(server.device.counters().resets.get(), 0);
}

#[test]
fn a_driver_that_begins_at_0_finds_the_device_reset__i12() {
    let server = Server::start(ServerOptions::default());
    let mut guest = mapped(&server);
    guest.stop();
    guest.start_anew();
    assert_eq!(guest.request(&a_map()), NOENT);
    assert_eq!(server.device.counters().resets.get(), 1);
}

#[test]
fn a_driver_that_begins_elsewhere_finds_the_device_reset() {
    let server = Server::start(ServerOptions::default());
    let mut guest = mapped(&server);
    let bases = guest.stop();
    let base = bases[REQUESTS] + 1;
    let queue = &mut guest.queues[REQUESTS];
    queue.available_index = base;
    queue.publish();
    guest.start([base, bases[1]]);
    assert_eq!(guest.request(&a_map()), NOENT);
}

#[test]
fn a_queue_that_stopped_unused_begins_with_a_reset() {
    let server = Server::start(ServerOptions::default());
    let mut guest = mapped(&server);
    guest.stop();
    guest.start_anew();
    assert_eq!(guest.stop(), [0, 0]);
    guest.start([0, 0]);
    guest.request(&attach(1, 8, 0));
    assert_eq!(server.device.counters().resets.get(), 2);
}

#[test]
fn a_driver_that_stopped_after_65536_requests_goes_on_at_0() {
    let server = Server::start(ServerOptions::default());
    let options = GuestOptions {
        queue_size: 128,
        layout: Layout::Indirect,
        ..GuestOptions::default()
    };
    let mut guest = Guest::connect(&server.path, &options);
    let batch: Vec<_> = std::iter::repeat_n(attach(1, 8, 0), 128).collect();
    for _ in 0..65_536 / 128 {
        guest.batch(&batch);
    }
    assert_eq!(guest.stop()[REQUESTS], 0);
    guest.start([0, 0]);
    assert_eq!(guest.request(&a_map()), OK);
    assert_eq!(server.device.counters().resets.get(), 0);
    // And a new driver begins at 0 as well, on a ring that is empty.
    guest.stop();
    guest.start_anew();
    assert_eq!(guest.request(&a_map()), NOENT);
}

#[test]
fn a_reset_of_the_machine_is_told_while_the_queues_stand() {
    let (server, driver_life) = told_of_resets();
    let mut guest = mapped(&server);
    let bases = guest.stop();
    assert!(driver_life.machine_was_reset(&server.device));
    assert!(server.device.status().domains.is_empty());
    // What would be a driver that goes on is a new one.
    guest.start(bases);
    assert_eq!(guest.request(&a_map()), NOENT);
    assert_eq!(server.device.counters().resets.get(), 1);
    // That holds for one start.
    assert_eq!(guest.request(&attach(1, 8, 0)), OK);
    let bases = guest.stop();
    guest.start(bases);
    assert_eq!(guest.request(&a_map()), OK);
}

#[test]
fn the_end_of_a_driver_is_no_pause() {
    let (server, driver_life) = told_of_resets();
    let mut guest = mapped(&server);
    let bases = guest.stop();
    let stop = driver_life.undecided_stop().unwrap();
    assert!(driver_life.machine_runs(stop, &server.device));
    // Devices that are still to be shut down have their translations.
    assert_eq!(server.device.counters().resets.get(), 0);
    assert_eq!(server.device.status().domains.len(), 1);
    // What would be a driver that goes on is a new one.
    guest.start(bases);
    assert_eq!(guest.request(&a_map()), NOENT);
    assert_eq!(server.device.counters().resets.get(), 1);
    // Nothing is left to tell of that stop, nor of one before.
    assert_eq!(guest.request(&attach(1, 8, 0)), OK);
    let bases = guest.stop();
    let next = driver_life.undecided_stop().unwrap();
    assert!(!driver_life.machine_runs(stop, &server.device));
    guest.start(bases);
    assert!(!driver_life.machine_runs(next, &server.device));
    assert_eq!(guest.request(&a_map()), OK);
}

/// Also attached to a table: a PASID in domain 2, and an endpoint in domain 3.
fn with_tables(server: &Server) -> Guest {
    let mut guest = mapped(server);
    assert_eq!(guest.request(&attach_table(2, 8, PASID, 5, 0x1000)), OK);
    assert_eq!(guest.request(&attach_table(3, 16, 0, 0, 0x1000)), OK);
    guest
}

/// Domains with tables that the device has.
fn tables(server: &Server) -> usize {
    let domains = server.device.status().domains;
    let tables = domains.iter().filter(|domain| domain.kind == "table");
    tables.count()
}

#[test]
fn tables_end_with_their_driver_and_mappings_with_the_next__x87() {
    let (server, driver_life) = told_of_resets();
    let mut guest = with_tables(&server);
    // It may be a pause.
    let bases = guest.stop();
    assert_eq!(tables(&server), 2);
    let stop = driver_life.undecided_stop().unwrap();
    assert!(driver_life.machine_runs(stop, &server.device));
    assert_eq!(tables(&server), 0);
    assert_eq!(server.device.status().domains.len(), 1);
    guest.start(bases);
    assert_eq!(guest.request(&invalidate(2, 0, 0xfff)), NOENT);
}

#[test]
fn a_driver_that_goes_on_finds_its_tables_and_another_none__x87() {
    let server = Server::start(ServerOptions::default());
    let mut guest = with_tables(&server);
    let bases = guest.stop();
    guest.start(bases);
    assert_eq!(guest.request(&invalidate(2, 0, 0xfff)), OK);
    guest.stop();
    guest.start_anew();
    assert_eq!(guest.request(&invalidate(2, 0, 0xfff)), NOENT);
    assert_eq!(tables(&server), 0);
}

#[test]
fn a_reset_that_is_told_late_leaves_the_next_driver_alone() {
    let (server, driver_life) = told_of_resets();
    let mut guest = mapped(&server);
    guest.stop();
    guest.start_anew();
    assert_eq!(guest.request(&attach(1, 8, 0)), OK);
    assert!(!driver_life.machine_was_reset(&server.device));
    assert_eq!(guest.request(&a_map()), OK);
    assert_eq!(server.device.counters().resets.get(), 1);
    drop(guest);
    wait_until("the front-end to be gone", || {
        driver_life.machine_was_reset(&server.device)
    });
}

#[test]
fn a_start_that_nobody_had_time_to_look_at_counts() {
    let server = Server::start(ServerOptions::default());
    let mut guest = mapped(&server);
    for _ in 0..50 {
        let bases = guest.stop();
        guest.start(bases);
    }
    assert_eq!(guest.request(&a_map()), INVAL);
    guest.stop();
    for queue in &mut guest.queues {
        queue.reset();
    }
    guest.start([0, 0]);
    guest.stop();
    guest.start([0, 0]);
    assert_eq!(guest.request(&a_map()), NOENT);
}

#[test]
fn requests_that_wait_while_the_queue_is_stopped_are_served_after_it() {
    let server = Server::start(ServerOptions::default());
    let mut guest = mapped(&server);
    let bases = guest.stop();
    let queued = guest.queue(&a_map(), 4);
    guest.queues[REQUESTS].submit();
    guest.start(bases);
    let (_, written) = guest.queues[REQUESTS].wait();
    assert_eq!(guest.collect(queued, written).status(), INVAL);
}

#[test]
fn reset_device_resets_and_keeps_bypass__c10() {
    let server = Server::start(ServerOptions::default());
    let mut guest = mapped(&server);
    write_bypass(&mut guest, 0);
    guest.frontend.reset_device().expect("RESET_DEVICE");
    assert_eq!(server.device.counters().resets.get(), 1);
    assert_eq!(guest.config()[BYPASS], 0);
    guest.start_anew();
    assert_eq!(guest.request(&a_map()), NOENT);
    assert_eq!(guest.request(&attach(1, 8, 0)), OK);
}

#[test]
fn a_disconnect_is_a_system_reset__c10() {
    let server = Server::start(ServerOptions::default());
    let mut guest = mapped(&server);
    write_bypass(&mut guest, 0);
    assert_eq!(guest.config()[BYPASS], 0);
    drop(guest);
    let mut guest = connect(&server);
    assert_eq!(guest.config()[BYPASS], 1);
    assert_eq!(guest.request(&a_map()), NOENT);
    drop(guest);
    wait_until("the memory is let go of", || {
        let status = server.device.status();
        !status.connected && status.memory.is_empty() && status.features.is_empty()
    });
}

fn write_bypass(guest: &mut Guest, bypass: u8) {
    let mut config = guest.config();
    config[BYPASS] = bypass;
    guest
        .frontend
        .set_config(0, VhostUserConfigFlags::WRITABLE, &config)
        .expect("SET_CONFIG");
}

#[test]
fn a_write_of_the_whole_config_space_changes_bypass_alone__c6() {
    let server = Server::start(ServerOptions::default());
    let stream = std::os::unix::net::UnixStream::connect(&server.path).expect("a connection");
    // Before memory, queues, or anything else.
    let mut guest = Guest::prepare(stream, &GuestOptions::default());
    let before = guest.config();
    let mut garbage = [0xa5; 40];
    garbage[BYPASS] = 0;
    guest
        .frontend
        .set_config(0, VhostUserConfigFlags::WRITABLE, &garbage)
        .expect("SET_CONFIG");
    let mut expected = before;
    expected[BYPASS] = 0;
    assert_eq!(guest.config(), expected);
    // A value that is none (C11).
    write_bypass(&mut guest, 7);
    assert_eq!(guest.config(), expected);
    write_bypass(&mut guest, 1);
    assert_eq!(guest.config(), before);
}

#[test]
fn any_part_of_the_config_space_can_be_read() {
    let server = Server::start(ServerOptions::default());
    let mut guest = connect(&server);
    let config = guest.config();
    for (offset, length) in [(0, 1), (8, 8), (32, 8), (36, 1), (39, 1), (32, 64), (40, 4)] {
        let (_, bytes) = guest
            .frontend
            .get_config(
                offset,
                length,
                VhostUserConfigFlags::WRITABLE,
                &vec![0; length as usize],
            )
            .expect("GET_CONFIG");
        let expected: Vec<u8> = (offset..offset + length)
            .map(|index| config.get(index as usize).copied().unwrap_or(0))
            .collect();
        assert_eq!(bytes, expected);
    }
}

#[test]
fn memory_comes_and_goes_while_the_queues_run() {
    let server = Server::start(ServerOptions::default());
    let mut guest = mapped(&server);
    for round in 0..5 {
        let gpa = 0x1_0000_0000 + (round << 32);
        let info = guest.ram.insert(ram::region(gpa, 1 << 20));
        guest.frontend.add_mem_region(&info).expect("ADD_MEM_REG");
        assert_eq!(server.device.status().memory.len(), 2);
        assert_eq!(guest.request(&a_map()), INVAL);
        let (info, _mapped) = guest.ram.remove(gpa);
        guest
            .frontend
            .remove_mem_region(&info)
            .expect("REM_MEM_REG");
        assert_eq!(server.device.status().memory.len(), 1);
        assert_eq!(guest.request(&a_map()), INVAL);
    }
    // The same table again: nothing comes or goes, and everything stays mapped.
    guest.send_memory();
    assert_eq!(guest.request(&a_map()), INVAL);
}

#[test]
fn features_that_were_not_offered_are_refused() {
    let server = Server::start(ServerOptions::default());
    let guest = connect(&server);
    let offered = guest.frontend.get_features().expect("GET_FEATURES");
    // RING_RESET, NOTIFICATION_DATA, IN_ORDER, ACCESS_PLATFORM, legacy BYPASS.
    for bit in [40, 38, 35, 33, 3] {
        assert_eq!(offered & 1 << bit, 0, "bit {bit}");
    }
    for bit in [32, 30, 29, 28, 0, 1, 2, 4, 6, 16, 17] {
        assert_ne!(offered & 1 << bit, 0, "bit {bit}");
    }
    assert!(guest.frontend.set_features(offered | 1 << 40).is_err());
    drop(guest);
    mapped(&server);
}
