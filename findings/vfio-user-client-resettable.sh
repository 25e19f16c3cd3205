#!/bin/bash
# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
#
# Software:  crate vfio_user 0.1.7 (rust-vmm/vfio-user), its client
# Behaviour: Client::resettable() returns the opposite of the server's answer. If VFIO_DEVICE_FLAGS_RESET is set in the answer to
#            DEVICE_GET_INFO, it returns false. If the flag is clear, it returns true.
# Seen:      The crate's own server is made with resettable = true: the client returns false. Made with false: the client returns
#            true.
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
use std::path::Path;
use std::{io, thread};
use vfio_user::{Client, DmaMapFlags, DmaUnmapFlags, Server, ServerBackend};

struct Device;

impl ServerBackend for Device {
    fn region_read(&mut self, _: u32, _: u64, _: &mut [u8]) -> io::Result<()> {
        Ok(())
    }
    fn region_write(&mut self, _: u32, _: u64, _: &[u8]) -> io::Result<()> {
        Ok(())
    }
    fn dma_map(&mut self, _: DmaMapFlags, _: u64, _: u64, _: u64, _: Option<File>) -> io::Result<()> {
        Ok(())
    }
    fn dma_unmap(&mut self, _: DmaUnmapFlags, _: u64, _: u64) -> io::Result<()> {
        Ok(())
    }
    fn reset(&mut self) -> io::Result<()> {
        Ok(())
    }
    fn set_irqs(&mut self, _: u32, _: u32, _: u32, _: u32, _: Vec<File>) -> io::Result<()> {
        Ok(())
    }
}

fn main() {
    let path = Path::new("socket");
    for resettable in [true, false] {
        let server = Server::new(path, resettable, vec![], vec![]).unwrap();
        let serving = thread::spawn(move || server.run(&mut Device).unwrap());
        let client = Client::new(path).unwrap();
        println!("server {resettable}, client {}", client.resettable());
        client.shutdown().unwrap();
        serving.join().unwrap();
    }
}
END

cat >expected <<'END'
server true, client false
server false, client true
END

cargo build --quiet
timeout 60 target/debug/finding >seen
if ! diff expected seen; then
    echo "CHANGED: the client's resettable() is no longer the opposite of the server's" >&2
    exit 1
fi
echo "As described: the client's resettable() is the opposite of the server's"
