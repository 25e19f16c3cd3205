// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Endpoints that come and go, and the descriptors that they come with.

use std::io::{Read as _, Write as _};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use serde_json::json;
use vhost_device_iommu::host::Host;
use vhost_device_iommu::spec::EndpointId;

use vmm_sys_util::sock_ctrl_msg::ScmSocket;

use crate::daemon::{Client, Daemon};

#[test]
fn endpoints_come_and_go() {
    let daemon = Daemon::new();
    let mut client = daemon.connect();
    let add = json!({"endpoint": "00:06.0"});
    assert_eq!(
        client.call("endpoint-add", add.clone()),
        json!({"return": {}})
    );
    assert_eq!(client.class("endpoint-add", add.clone()), "InvalidArgument");
    let vfio = json!({"endpoint": 1, "vfio": "/dev/vfio/devices/vfio0"});
    assert_eq!(client.class("endpoint-add", vfio), "Unsupported");
    // Nobody listens to QEMU here.
    let named = json!({"endpoint": 1, "qemu-id": "dev0"});
    assert_eq!(client.class("endpoint-add", named), "InvalidArgument");
    let read = json!({"endpoint": "00:06.0", "iova": 0, "length": 1});
    assert_eq!(
        client.call("dma-read", read.clone()),
        json!({"return": {"data": "00"}})
    );
    assert_eq!(
        client.call("endpoint-remove", add.clone()),
        json!({"return": {}})
    );
    assert_eq!(client.class("endpoint-remove", add), "InvalidArgument");
    assert_eq!(client.class("dma-read", read), "InvalidArgument");
}

#[test]
fn pci_functions_come_and_go() {
    let daemon = Daemon::new();
    let mut client = daemon.connect();
    assert_eq!(
        client.class("endpoint", json!({"endpoint": 40})),
        "Unsupported"
    );
    let nowhere = json!({"endpoint": 1, "soft": "/nonexistent/pci"});
    assert_eq!(client.class("endpoint-add", nowhere), "InvalidArgument");
    let one = json!({"endpoint": 1});
    assert_eq!(client.class("endpoint", one.clone()), "InvalidArgument");
    let path = daemon.path.with_file_name("pci");
    for _ in 0..2 {
        let add = json!({"endpoint": 1, "soft": path});
        assert_eq!(client.call("endpoint-add", add), json!({"return": {}}));
        let front_end = vfio_user::Client::new(&path).expect("connect");
        let seen = &client.call("endpoint", one.clone())["return"];
        assert_eq!(seen["connected"], true);
        assert_eq!(
            client.call("endpoint-remove", one.clone()),
            json!({"return": {}})
        );
        assert!(!path.exists());
        assert_eq!(client.class("endpoint", one.clone()), "InvalidArgument");
        drop(front_end);
    }
}

#[test]
fn removing_an_endpoint_answers_its_waiting_accesses() {
    let daemon = Daemon::new();
    let mut client = daemon.connect();
    daemon.attach(1);
    client.send(concat!(
        r#"{"execute":"dma-read","arguments":{"endpoint":40,"iova":0,"length":1},"id":1}"#,
        "\n"
    ));
    daemon.groups(1);
    let mut other = daemon.connect();
    assert_eq!(
        other.call("endpoint-remove", json!({"endpoint": 40})),
        json!({"return": {}})
    );
    let answer = client.receive();
    assert_eq!(answer["error"]["class"], "PageRequestFailed");
    assert!(!daemon.host.has_endpoint(EndpointId(40)));
}

#[test]
fn a_descriptor_belongs_to_the_line_it_came_with() {
    let daemon = Daemon::new();
    let mut client = daemon.connect();
    let null = std::fs::File::open("/dev/null").expect("open");
    let add = b"{\"execute\":\"endpoint-add\",\"arguments\":{\"endpoint\":9},\"id\":1}\n";
    client
        .0
        .get_mut()
        .send_with_fd(&add[..], std::os::fd::AsRawFd::as_raw_fd(&null))
        .expect("send");
    // A device, for a process with software endpoints.
    assert_eq!(client.receive()["error"]["class"], "Unsupported");
    // Without a descriptor it is a software endpoint.
    client.send(std::str::from_utf8(add).expect("text"));
    assert_eq!(client.receive(), json!({"return": {}, "id": 1}));
}

/// One end of a pair of sockets, as often as asked for, and the other end: that sees when all of them are closed.
fn watched(count: usize) -> (UnixStream, Vec<OwnedFd>) {
    let (ours, theirs) = UnixStream::pair().expect("pair");
    ours.set_read_timeout(Some(Duration::from_secs(20)))
        .expect("timeout");
    let theirs = OwnedFd::from(theirs);
    let copies = (1..count).map(|_| theirs.try_clone().expect("copy"));
    let mut copies: Vec<_> = copies.collect();
    copies.push(theirs);
    (ours, copies)
}

/// Sends bytes with descriptors, and keeps none of these.
fn send_with(client: &mut Client, bytes: &[u8], descriptors: Vec<OwnedFd>) {
    let raw: Vec<_> = descriptors.iter().map(AsRawFd::as_raw_fd).collect();
    let sent = client.0.get_mut().send_with_fds(&[bytes], &raw);
    assert_eq!(sent.expect("send"), bytes.len());
}

fn assert_all_closed(mut ours: UnixStream) {
    let count = ours.read(&mut [0]).expect("the end, when all are closed");
    assert_eq!(count, 0);
}

const ADD: &[u8] = b"{\"execute\":\"endpoint-add\",\"arguments\":{\"endpoint\":9}}\n";

#[test]
fn a_line_with_several_descriptors_is_refused_and_all_are_closed() {
    let daemon = Daemon::new();
    let mut client = daemon.connect();
    for count in [2, 3, 8, 64, 253] {
        let (ours, theirs) = watched(count);
        send_with(&mut client, ADD, theirs);
        let answer = client.receive();
        assert_eq!(answer["error"]["class"], "InvalidArgument");
        let desc = answer["error"]["desc"].as_str().expect("desc");
        assert!(desc.starts_with(&format!("{count} descriptors")), "{desc}");
        assert_all_closed(ours);
    }
    // Also in pieces.
    let (ours, mut theirs) = watched(2);
    send_with(&mut client, &ADD[..5], vec![theirs.remove(0)]);
    send_with(&mut client, &ADD[5..], theirs);
    assert_eq!(client.receive()["error"]["class"], "InvalidArgument");
    assert_all_closed(ours);
}

#[test]
fn a_descriptor_that_no_command_takes_is_refused_and_closed() {
    let daemon = Daemon::new();
    let mut client = daemon.connect();
    for line in [
        &b"{\"execute\":\"status\"}\n"[..],
        b"{\"execute\":\"reboot\"}",
        b"nonsense\n",
        &[b"x".repeat((1 << 20) + 1), b"\n".to_vec()].concat(),
    ] {
        let (ours, mut theirs) = watched(1);
        let (first, rest) = line.split_at(4);
        send_with(&mut client, first, vec![theirs.remove(0)]);
        client.0.get_mut().write_all(rest).expect("send");
        assert!(client.receive().get("error").is_some());
        assert_all_closed(ours);
    }
    // Nothing of it is left for the next line.
    client.send(std::str::from_utf8(ADD).expect("text"));
    assert_eq!(client.receive(), json!({"return": {}}));
    let (ours, theirs) = watched(3);
    send_with(&mut client, b"{\"execute\"", theirs);
    drop(client);
    assert_all_closed(ours);
}
