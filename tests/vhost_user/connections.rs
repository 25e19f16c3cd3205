// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Front-ends that come, go, wait, and misbehave.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use vhost::vhost_user::message::VhostUserHeaderFlag;
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::{VhostBackend, VringConfigData};
use vmm_sys_util::eventfd::EventFd;

use crate::OK;
use crate::common::requests::attach;
use crate::common::{Guest, GuestOptions, Server, ServerOptions, wait_until};

fn works(server: &Server) {
    let mut guest = Guest::connect(&server.path, &GuestOptions::default());
    assert_eq!(guest.request(&attach(1, 8, 0)), OK);
}

fn frontend(server: &Server) -> Frontend {
    let stream = UnixStream::connect(&server.path).expect("a connection");
    Frontend::from_stream(stream, 2)
}

#[test]
fn a_second_front_end_waits_until_the_first_is_gone() {
    let server = Server::start(ServerOptions::default());
    let mut first = Guest::connect(&server.path, &GuestOptions::default());
    let path = server.path.clone();
    let second = std::thread::spawn(move || {
        let mut guest = Guest::connect(&path, &GuestOptions::default());
        guest.request(&attach(1, 8, 0))
    });
    for _ in 0..100 {
        assert_eq!(first.request(&attach(1, 8, 0)), OK);
    }
    assert_eq!(server.device.counters().connections.get(), 1);
    drop(first);
    assert_eq!(second.join().expect("no panic"), OK);
    assert_eq!(server.device.counters().connections.get(), 2);
}

#[test]
fn a_front_end_that_goes_in_the_middle_of_a_batch_does_no_harm() {
    let server = Server::start(ServerOptions::default());
    for _ in 0..20 {
        let mut guest = Guest::connect(&server.path, &GuestOptions::default());
        for _ in 0..30 {
            guest.queue(&attach(1, 8, 0), 4);
        }
        guest.queues[0].submit();
    }
    works(&server);
}

#[test]
fn stopping_ends_a_connection_and_resets_the_device() {
    let mut server = Server::start(ServerOptions::default());
    let mut guest = Guest::connect(&server.path, &GuestOptions::default());
    assert_eq!(guest.request(&attach(1, 8, 0)), OK);
    server.stop();
    let status = server.device.status();
    assert!(!status.connected);
    assert!(status.domains.is_empty());
    assert!(guest.frontend.get_features().is_err());
}

#[test]
fn stopping_needs_no_connection() {
    let mut server = Server::start(ServerOptions::default());
    server.stop();
}

#[test]
fn garbage_ends_its_own_connection_only() {
    let server = Server::start(ServerOptions::default());
    let message = |request: u32, flags: u32, body: &[u8]| {
        let mut bytes = Vec::new();
        for word in [request, flags, body.len() as u32] {
            bytes.extend(word.to_ne_bytes());
        }
        bytes.extend(body);
        bytes
    };
    let mut garbage = vec![
        vec![],
        vec![0],
        vec![0xff; 12],
        vec![0x55; 5000],
        message(0, 1, &[]),
        message(1, 0xffff_fff1, &[]),
        message(1, 2, &[]),
        message(1, 5, &[]),
        message(1, 1, &[0; 8]),
    ];
    // Every request with no body, a body of zeros, of ones, and too long a body; none has descriptors.
    for request in 1..64 {
        for body in [&[0u8; 0][..], &[0; 8], &[0xff; 8], &[0; 40], &[0xff; 40]] {
            garbage.push(message(request, 1, body));
            garbage.push(message(request, 9, body));
        }
        let mut long = message(request, 1, &[]);
        long[8..].copy_from_slice(&u32::MAX.to_ne_bytes());
        garbage.push(long);
    }
    for bytes in garbage {
        let mut stream = UnixStream::connect(&server.path).expect("a connection");
        // It may be closed already.
        let _ = stream.write_all(&bytes);
        stream
            .shutdown(std::net::Shutdown::Write)
            .expect("a shutdown");
        // To its end: an answer, or none.
        let _ = stream.read_to_end(&mut Vec::new());
    }
    works(&server);
}

#[test]
fn messages_out_of_order_are_refused_without_harm() {
    type Attempt = fn(&mut Frontend);
    let address = VringConfigData {
        queue_max_size: 64,
        queue_size: 64,
        flags: 0,
        desc_table_addr: 0x1000,
        used_ring_addr: 0x2000,
        avail_ring_addr: 0x3000,
        log_addr: None,
    };
    static ADDRESS: std::sync::OnceLock<VringConfigData> = std::sync::OnceLock::new();
    ADDRESS.get_or_init(|| address);
    let attempts: &[Attempt] = &[
        |frontend| {
            let _ = frontend.set_vring_addr(0, ADDRESS.get().expect("set above"));
        },
        |frontend| {
            let _ = frontend.get_vring_base(0);
            let _ = frontend.get_vring_base(1);
            let _ = frontend.get_vring_base(0);
        },
        |frontend| {
            let kick = EventFd::new(0).expect("an eventfd");
            let _ = frontend.set_vring_kick(0, &kick);
            let _ = frontend.set_vring_kick(1, &kick);
            kick.write(1).expect("a kick");
            let _ = frontend.set_vring_enable(0, true);
            let _ = frontend.set_vring_enable(1, true);
            kick.write(1).expect("a kick");
            let _ = frontend.get_vring_base(0);
        },
        |frontend| {
            let _ = frontend.set_vring_num(0, 0);
        },
        |frontend| {
            let _ = frontend.set_vring_num(0, 1025);
        },
        |frontend| {
            let _ = frontend.set_vring_num(0, 77);
            let _ = frontend.set_vring_enable(0, true);
        },
        |frontend| {
            let _ = frontend.reset_device();
            let _ = frontend.reset_device();
        },
        |frontend| {
            let _ = frontend.reset_owner();
            let _ = frontend.set_owner();
            let _ = frontend.set_owner();
        },
        |frontend| {
            let _ = frontend.set_features(0);
            let kick = EventFd::new(0).expect("an eventfd");
            let _ = frontend.set_vring_kick(0, &kick);
            kick.write(1).expect("a kick");
        },
        |frontend| {
            let call = EventFd::new(0).expect("an eventfd");
            let _ = frontend.set_vring_call(0, &call);
            let _ = frontend.set_vring_err(0, &call);
            let _ = frontend.set_vring_enable(0, true);
        },
    ];
    let server = Server::start(ServerOptions::default());
    for (index, attempt) in attempts.iter().enumerate() {
        // Raw, and after a handshake.
        attempt(&mut frontend(&server));
        let stream = UnixStream::connect(&server.path).expect("a connection");
        let mut guest = Guest::prepare(stream, &GuestOptions::default());
        guest.frontend.set_hdr_flags(VhostUserHeaderFlag::empty());
        attempt(&mut guest.frontend);
        drop(guest);
        // And with everything running.
        let mut guest = Guest::connect(&server.path, &GuestOptions::default());
        attempt(&mut guest.frontend);
        drop(guest);
        works(&server);
        wait_until(&format!("the end of attempt {index}"), || {
            !server.device.status().connected
        });
    }
}

#[test]
fn kick_descriptors_of_any_kind_do_no_harm() {
    let server = Server::start(ServerOptions::default());
    let (reader, writer) = std::io::pipe().expect("a pipe");
    let file = tempfile::tempfile().expect("a file");
    let socket = UnixStream::pair().expect("sockets").0;
    use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
    let duplicate = |fd: OwnedFd| {
        use std::os::fd::IntoRawFd;
        // SAFETY: the descriptor is owned, and given up.
        unsafe { EventFd::from_raw_fd(fd.into_raw_fd()) }
    };
    let odd = [
        duplicate(reader.into()),
        duplicate(file.into()),
        duplicate(socket.into()),
    ];
    drop(writer);
    for fd in &odd {
        assert!(fd.as_raw_fd() >= 0);
        let guest = Guest::connect(&server.path, &GuestOptions::default());
        let _ = guest.frontend.set_vring_kick(0, fd);
        let _ = guest.frontend.set_vring_call(0, fd);
        drop(guest);
        works(&server);
        let stream = UnixStream::connect(&server.path).expect("a connection");
        let mut guest = Guest::prepare(stream, &GuestOptions::default());
        guest.send_memory();
        let _ = guest.frontend.set_vring_kick(0, fd);
        let _ = guest.frontend.set_vring_enable(0, true);
        drop(guest);
        works(&server);
    }
}
