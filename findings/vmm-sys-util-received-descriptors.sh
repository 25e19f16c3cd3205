#!/bin/bash
# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
#
# Software:  crate vmm-sys-util 0.15.0 (rust-vmm/vmm-sys-util), module sock_ctrl_msg
# Behaviour: recv_with_fd() and recv_with_fds() receive descriptors without the flag MSG_CMSG_CLOEXEC. So a program that the
#            process starts inherits them, as it inherits no descriptor that Rust's standard library opens or receives. Crate
#            vhost 0.18.0 receives a front-end's descriptors with these functions: they are guest memory, kicks and calls. A
#            process that starts programs must set FD_CLOEXEC on what it receives, or duplicate it with try_clone().
# Seen:      A process opens a file, sends it to itself and receives it. A program that it starts has the received descriptor, and
#            neither the opened one nor a duplicate of the received one.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
mkdir src

cat >Cargo.toml <<'END'
[package]
name = "finding"
version = "0.0.0"
edition = "2021"

[dependencies]
vmm-sys-util = "=0.15.0"
END

cat >src/main.rs <<'END'
use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::process::Command;
use vmm_sys_util::sock_ctrl_msg::ScmSocket;

/// Whether a program that this process starts has the descriptor.
fn inherited(file: &File) -> bool {
    let descriptor = format!("/proc/self/fd/{}", file.as_raw_fd());
    let output = Command::new("readlink").arg(descriptor).output().unwrap();
    output.status.success()
}

fn main() {
    let file = File::open("Cargo.toml").unwrap();
    let (sender, receiver) = UnixStream::pair().unwrap();
    sender.send_with_fd(&b"x"[..], file.as_raw_fd()).unwrap();
    let (_, received) = receiver.recv_with_fd(&mut [0]).unwrap();
    let received = received.unwrap();
    println!("opened: {}", inherited(&file));
    println!("received: {}", inherited(&received));
    println!("duplicate: {}", inherited(&received.try_clone().unwrap()));
}
END

cat >expected <<'END'
opened: false
received: true
duplicate: false
END

cargo build --quiet
timeout 60 target/debug/finding >seen
if ! diff expected seen; then
    echo "CHANGED: other descriptors are inherited" >&2
    exit 1
fi
echo "As described: received descriptors are inherited by other programs"
