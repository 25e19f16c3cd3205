#!/bin/bash
# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
#
# Software:  crate vfio_user 0.1.7 (rust-vmm/vfio-user), its server
# Behaviour: DMA_UNMAP has the flags of Linux's VFIO: 1 asks for the dirty bitmap, 2 means all mappings. The crate calls 2
#            GET_DIRTY_PAGE_INFO, and 4 UNMAP_ALL. So a server that tests for UNMAP_ALL misses it, and sees a request for dirty
#            pages that no client made.
# Seen:      A client unmaps everything with VFIO_DMA_UNMAP_FLAG_ALL = 2 of the crate vfio-bindings 0.7.0. The server's backend
#            gets GET_DIRTY_PAGE_INFO, and not UNMAP_ALL.
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
vfio-bindings = "=0.7.0"
END

cat >src/main.rs <<'END'
use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::{io, thread};
use vfio_bindings::bindings::vfio::VFIO_DMA_UNMAP_FLAG_ALL;
use vfio_user::{DmaMapFlags, DmaUnmapFlags, Server, ServerBackend};

const DMA_UNMAP: u16 = 3;

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
    fn dma_unmap(&mut self, flags: DmaUnmapFlags, _: u64, _: u64) -> io::Result<()> {
        let all = flags.contains(DmaUnmapFlags::UNMAP_ALL);
        let dirty = flags.contains(DmaUnmapFlags::GET_DIRTY_PAGE_INFO);
        println!("server: {:#x}: UNMAP_ALL {all}, GET_DIRTY_PAGE_INFO {dirty}", flags.bits());
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
    let server = Server::new(path, true, vec![], vec![]).unwrap();
    let serving = thread::spawn(move || server.run(&mut Device).unwrap());
    let mut client = UnixStream::connect(path).unwrap();

    // Header: id, command, size, flags, error. Request: argsz, flags, address, size.
    let mut message = Vec::new();
    message.extend(7u16.to_le_bytes());
    message.extend(DMA_UNMAP.to_le_bytes());
    [40u32, 0, 0, 24, VFIO_DMA_UNMAP_FLAG_ALL].iter().for_each(|field| message.extend(field.to_le_bytes()));
    [0u64, 0].iter().for_each(|field| message.extend(field.to_le_bytes()));
    println!("client: flags {VFIO_DMA_UNMAP_FLAG_ALL:#x}");
    client.write_all(&message).unwrap();
    client.read_exact(&mut [0; 40]).unwrap();
    drop(client);
    serving.join().unwrap();
}
END

cat >expected <<'END'
client: flags 0x2
server: 0x2: UNMAP_ALL false, GET_DIRTY_PAGE_INFO true
END

cargo build --quiet
timeout 60 target/debug/finding >seen
if ! diff expected seen; then
    echo "CHANGED: the flags of DMA_UNMAP have other names" >&2
    exit 1
fi
echo "As described: UNMAP_ALL stands on the wrong bit"
