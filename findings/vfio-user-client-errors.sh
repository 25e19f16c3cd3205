#!/bin/bash
# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
#
# Software:  crate vfio_user 0.1.7 (rust-vmm/vfio-user), its client
# Behaviour: dma_map() and reset() read the server's reply and do not look at its error bit. They return Ok if the server has
#            refused. A user of the client cannot learn of the refusal in another way.
# Seen:      A server answers each DMA_MAP and DEVICE_RESET with an error. Both calls return Ok(()).
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
vfio_user = "=0.1.7"
END

cat >src/main.rs <<'END'
use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::{io, thread};
use vfio_user::{Client, DmaMapFlags, DmaUnmapFlags, Server, ServerBackend};

fn refuse(what: &str) -> io::Result<()> {
    println!("server: refuses {what}");
    Err(io::Error::other("no"))
}

struct Device;

impl ServerBackend for Device {
    fn region_read(&mut self, _: u32, _: u64, _: &mut [u8]) -> io::Result<()> {
        Ok(())
    }
    fn region_write(&mut self, _: u32, _: u64, _: &[u8]) -> io::Result<()> {
        Ok(())
    }
    fn dma_map(&mut self, _: DmaMapFlags, _: u64, _: u64, _: u64, _: Option<File>) -> io::Result<()> {
        refuse("the mapping")
    }
    fn dma_unmap(&mut self, _: DmaUnmapFlags, _: u64, _: u64) -> io::Result<()> {
        Ok(())
    }
    fn reset(&mut self) -> io::Result<()> {
        refuse("the reset")
    }
    fn set_irqs(&mut self, _: u32, _: u32, _: u32, _: u32, _: Vec<File>) -> io::Result<()> {
        Ok(())
    }
}

fn main() {
    let path = Path::new("socket");
    let server = Server::new(path, true, vec![], vec![]).unwrap();
    let serving = thread::spawn(move || server.run(&mut Device).unwrap());
    let mut client = Client::new(path).unwrap();
    let memory = File::open("/dev/zero").unwrap();
    println!("client: {:?}", client.dma_map(0, 0x10000, 0x1000, memory.as_raw_fd()));
    println!("client: {:?}", client.reset());
    client.shutdown().unwrap();
    serving.join().unwrap();
}
END

cat >expected <<'END'
server: refuses the mapping
client: Ok(())
server: refuses the reset
client: Ok(())
END

cargo build --quiet
timeout 60 target/debug/finding >seen
if ! diff expected seen; then
    echo "CHANGED: the client does report a server's refusal" >&2
    exit 1
fi
echo "As described: the client takes refusals for success"
