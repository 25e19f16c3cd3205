// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a connection leaves behind: nothing. In a process of its own, where nobody else opens descriptors.

use std::process::Command;

use crate::OK;
use crate::common::requests::attach;
use crate::common::{Guest, GuestOptions, Server, ServerOptions, wait_until};

const CONNECTIONS: usize = 50;

fn entries(path: &str) -> usize {
    std::fs::read_dir(path).expect("a directory").count()
}

#[test]
#[ignore = "run by connections_leave_no_descriptor_and_no_thread_behind"]
fn many_connections() {
    let server = Server::start(ServerOptions::default());
    let connection = || {
        let mut guest = Guest::connect(&server.path, &GuestOptions::default());
        assert_eq!(guest.request(&attach(1, 8, 0)), OK);
        drop(guest);
        wait_until("the end of the connection", || {
            !server.device.status().connected && server.device.status().memory.is_empty()
        });
    };
    connection();
    let count = || (entries("/proc/self/fd"), entries("/proc/self/task"));
    let (descriptors, threads) = count();
    for _ in 0..CONNECTIONS {
        connection();
    }
    // The server is done with a connection, and ready for the next, shortly after the device says so: either count may
    // be of before that, and differ by what a connection has. What every one left behind would be more.
    wait_until("about as many descriptors and threads as before", || {
        let now = count();
        now.0 < descriptors + CONNECTIONS / 2 && now.1 < threads + CONNECTIONS / 2
    });
}

#[test]
fn connections_leave_no_descriptor_and_no_thread_behind() {
    let program = std::env::current_exe().expect("this program");
    let status = Command::new(program)
        .args(["--ignored", "--exact", "descriptors::many_connections"])
        .status()
        .expect("a process");
    assert!(status.success());
}
