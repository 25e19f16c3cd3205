// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Guest memory that comes and goes.

use super::*;
use crate::common::ram;
use vhost::vhost_user::VhostUserFrontend;

const NEW: u64 = 0x1000_0000;
const AT: u64 = IOVA + NEW;
/// The kernel makes an allocation for about every page.
const LENGTH: u64 = 0x1_0000;

/// Ends the use of the new memory; with a new front-end where the connection has ended.
fn restore(bench: &mut Bench, connected: bool) {
    let (_, region) = bench.guest.ram.remove(NEW);
    drop(region);
    if connected {
        assert_eq!(bench.unmap(DOMAIN, AT, LENGTH), OK);
    } else {
        bench.is_disconnected();
        bench.start_again();
    }
    assert!(bench.reaches(IOVA, GPA));
}

/// Whether any region of memory has its error in `status`.
fn error_is_told(bench: &Bench) -> bool {
    let status = bench.status();
    let memory = status["memory"].as_array().unwrap();
    memory.iter().any(|region| region["error"].is_string())
}

#[test]
fn memory_that_is_added_is_reached_or_its_error_is_told() {
    sweep("adding memory", |bench, point| {
        let info = bench.guest.ram.insert(ram::region(NEW, LENGTH));
        assert_eq!(bench.map(DOMAIN, AT, LENGTH, NEW), OK);
        let result = point.during(|| bench.guest.frontend.add_mem_region(&info));
        let Bench { program, guest } = &*bench;
        let reached = program.reaches(ENDPOINT, guest, AT, LENGTH, NEW);
        assert!(reached || result.is_err() || error_is_told(bench));
        let outcome = match (&result, reached) {
            (Ok(_), true) => "reached",
            (Ok(_), false) => "error in status",
            (Err(_), _) => "refused",
        };
        let connected = result.is_ok() && bench.guest.frontend.remove_mem_region(&info).is_ok();
        restore(bench, connected);
        outcome.to_owned()
    });
}

#[test]
fn memory_that_is_removed_is_out_of_reach() {
    sweep("removing memory", |bench, point| {
        let info = bench.guest.ram.insert(ram::region(NEW, LENGTH));
        assert_eq!(bench.map(DOMAIN, AT, LENGTH, NEW), OK);
        bench.guest.frontend.add_mem_region(&info).unwrap();
        let result = point.during(|| bench.guest.frontend.remove_mem_region(&info));
        let Bench { program, guest } = &*bench;
        if result.is_err() {
            bench.is_disconnected();
        }
        assert!(program.reaches_none(ENDPOINT, guest, AT, LENGTH, NEW));
        restore(bench, result.is_ok());
        match result {
            Ok(()) => "removed".to_owned(),
            Err(_) => "the connection ended".to_owned(),
        }
    });
}
