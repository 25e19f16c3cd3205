#!/bin/bash
# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
#
# Software:  crate vfio_user 0.1.7 (rust-vmm/vfio-user), its server
# Behaviour: The reply to a failed request has an error bit and an errno. If a method of ServerBackend fails, the server sets the
#            bit and leaves the errno 0, whatever errno the method's io::Error has. Only the server's own complaints about a
#            message have an errno (EINVAL). A client that makes a result of the errno sees a success.
# Seen:      dma_map() fails with ENOSPC (28). The reply has flags 0x21 (reply, error) and error 0.
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
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::{io, thread};
use vfio_user::{DmaMapFlags, DmaUnmapFlags, Server, ServerBackend};

const ENOSPC: i32 = 28;
const DMA_MAP: u16 = 2;

struct Device;

impl ServerBackend for Device {
    fn region_read(&mut self, _: u32, _: u64, _: &mut [u8]) -> io::Result<()> {
        Ok(())
    }
    fn region_write(&mut self, _: u32, _: u64, _: &[u8]) -> io::Result<()> {
        Ok(())
    }
    fn dma_map(&mut self, _: DmaMapFlags, _: u64, _: u64, _: u64, _: Option<File>) -> io::Result<()> {
        println!("server: fails with {ENOSPC}");
        Err(io::Error::from_raw_os_error(ENOSPC))
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
    let server = Server::new(path, true, vec![], vec![]).unwrap();
    let serving = thread::spawn(move || server.run(&mut Device).unwrap());
    let mut client = UnixStream::connect(path).unwrap();

    // Header: id, command, size, flags, error. Request: argsz, flags (read, write), offset, address, size.
    let mut message = Vec::new();
    message.extend(7u16.to_le_bytes());
    message.extend(DMA_MAP.to_le_bytes());
    [48u32, 0, 0, 32, 3].iter().for_each(|field| message.extend(field.to_le_bytes()));
    [0u64, 0x10000, 0x1000].iter().for_each(|field| message.extend(field.to_le_bytes()));
    client.write_all(&message).unwrap();

    let mut reply = [0; 16];
    client.read_exact(&mut reply).unwrap();
    let word = |at: usize| u32::from_le_bytes(reply[at..at + 4].try_into().unwrap());
    println!("client: flags {:#x}, error {}", word(8), word(12));
    drop(client);
    serving.join().unwrap();
}
END

cat >expected <<'END'
server: fails with 28
client: flags 0x21, error 0
END

cargo build --quiet
timeout 60 target/debug/finding >seen
if ! diff expected seen; then
    echo "CHANGED: the server's error reply is another" >&2
    exit 1
fi
echo "As described: the errno of a failed request is lost"
