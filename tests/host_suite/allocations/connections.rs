// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Front-ends that connect.

use super::*;
use crate::common::{GuestOptions, wait_until};
use std::os::unix::net::UnixStream;
use std::time::Duration;

/// A front-end without an answer for so long gives up.
const PATIENCE: Duration = Duration::from_secs(3);

/// A front-end that connects, starts its queues and attaches an endpoint; `None` where it is refused or not answered.
fn connect(program: &Program) -> Option<u8> {
    let attempt = || {
        let stream = UnixStream::connect(program.vhost_path()).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut guest = Guest::on(stream, &GuestOptions::default());
        guest.request(&requests::attach(DOMAIN, ENDPOINT, 0))
    };
    catch_unwind(AssertUnwindSafe(attempt)).ok()
}

/// A front-end for which there is memory is served, and goes.
fn serves(program: &Program) {
    let mut guest = program.guest();
    let attach = requests::attach(DOMAIN, ENDPOINT, 0);
    assert_eq!(guest.request(&attach), OK);
    let map = requests::map(DOMAIN, IOVA, IOVA + MIB - 1, GPA, READ | WRITE);
    assert_eq!(guest.request(&map), OK);
    assert!(program.reaches(ENDPOINT, &guest, IOVA, MIB, GPA));
    drop(guest);
    is_disconnected(program);
}

fn is_disconnected(program: &Program) {
    wait_until("the disconnect", || {
        program.control("status", json!({}))["connected"] == false
    });
}

#[test]
fn a_front_end_is_served_or_refused_and_the_next_is_served() {
    let program = start_program();
    serves(&program);
    let mut points = 0;
    for (thread, name) in threads(&program) {
        let mut outcomes = BTreeMap::<&str, usize>::new();
        for nth in slice::points() {
            assert!(nth < MANY, "endless in {name}");
            // It lives as long as the program: the threads of a connection do not exist yet.
            let fail = FailNth::of(program.id(), thread).expect("a thread");
            let (status, happened) = fail.during(nth, || connect(&program));
            let outcome = match status {
                Some(OK) => "served",
                Some(_) => "its request refused",
                None => "refused",
            };
            named("connecting", &name, nth, || {
                is_disconnected(&program);
                serves(&program);
            });
            if happened != Some(true) {
                break;
            }
            points += 1;
            *outcomes.entry(outcome).or_default() += 1;
        }
        println!("connecting: {name}: {outcomes:?}");
    }
    assert!(points > 0, "no allocation was made to fail");
}
