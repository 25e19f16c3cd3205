// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a front-end has told crate vhost-user-backend, to tell it another daemon of the crate.
//!
//! The crate (0.24, with `vhost` 0.18) keeps of a connection: whether it has an owner, the features, the protocol
//! features, and where the front-end has memory. It cannot be given these, but it can be told again. What messages
//! have said of queues is in vrings, which are ours, and goes from one to the next as it is (`vring::RingState`): an
//! address that was translated when it came need not have a translation today, and a base is long past.

use std::io::{self, Read};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use vhost::vhost_user::message::{
    FrontendReq, MAX_ATTACHED_FD_ENTRIES, VhostUserMemory, VhostUserMemoryRegion,
    VhostUserSingleMemoryRegion, VhostUserU64,
};
use vm_memory::{
    ByteValued, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion, GuestRegionMmap,
};

use crate::os::relay;
use crate::transport::link::HEADER;

/// Flags of a message that wants no answer: version 1.
const FLAGS: u32 = 1;

/// How long the library may take for a replay. It does what its own code says, on memory that it had before.
const PATIENCE: Duration = Duration::from_secs(5);

/// Where the front-end has a region mapped: it names the addresses of rings by that.
#[derive(Clone, Copy)]
pub(super) struct Area {
    pub user_address: u64,
    pub gpa: u64,
    pub length: u64,
}

impl Area {
    fn new(region: &VhostUserMemoryRegion) -> Self {
        Self {
            user_address: region.user_addr,
            gpa: region.guest_phys_addr,
            length: region.memory_size,
        }
    }
}

/// What the messages of a connection have said to the library.
#[derive(Default)]
pub(super) struct Recorder {
    messages: u64,
    owned: bool,
    protocol_features: Option<u64>,
    features: Option<u64>,
    areas: Vec<Area>,
}

impl Recorder {
    /// How many messages came.
    pub fn messages(&self) -> u64 {
        self.messages
    }

    /// Where the front-end has memory that it shares.
    pub fn areas(&self) -> &[Area] {
        &self.areas
    }

    /// A message came. What is too short the library refuses, and what it refuses ends the connection.
    pub fn record(&mut self, request: FrontendReq, body: &[u8]) {
        self.messages += 1;
        let value = || read::<VhostUserU64>(body).map(|value| value.value);
        match request {
            FrontendReq::SET_OWNER => self.owned = true,
            FrontendReq::RESET_OWNER => {
                self.owned = false;
                self.features = None;
            }
            FrontendReq::RESET_DEVICE => self.features = None,
            FrontendReq::SET_PROTOCOL_FEATURES => self.protocol_features = value(),
            FrontendReq::SET_FEATURES => self.features = value(),
            FrontendReq::SET_MEM_TABLE => self.areas = table(body),
            FrontendReq::ADD_MEM_REG => {
                if let Some(region) = read::<VhostUserSingleMemoryRegion>(body) {
                    self.areas.push(Area::new(&region));
                }
            }
            FrontendReq::REM_MEM_REG => {
                if let Some(region) = read::<VhostUserSingleMemoryRegion>(body) {
                    let gpa = region.guest_phys_addr;
                    self.areas.retain(|area| area.gpa != gpa);
                }
            }
            _ => {}
        }
    }

    /// Tells a fresh daemon, at the other end of `library`, what the one before it was told, and waits until it has taken
    /// that. `memory` is the map of the one before: the files of the regions are there.
    ///
    /// # Errors
    /// The library refuses something, which its thread knows more of, or there is no room for descriptors.
    pub fn replay(&self, mut library: &UnixStream, memory: &GuestMemoryMmap) -> io::Result<()> {
        library.set_read_timeout(Some(PATIENCE))?;
        library.set_write_timeout(Some(PATIENCE))?;
        let none: &[std::fs::File] = &[];
        if self.owned {
            relay::send(library, &message(FrontendReq::SET_OWNER, &[]), none)?;
        }
        for (request, value) in [
            (FrontendReq::SET_PROTOCOL_FEATURES, self.protocol_features),
            (FrontendReq::SET_FEATURES, self.features),
        ] {
            if let Some(value) = value {
                let body = VhostUserU64::new(value);
                relay::send(library, &message(request, body.as_slice()), none)?;
            }
        }
        self.replay_memory(library, memory)?;
        // Without a look at the features the library answers no message that wants an answer (REPLY_ACK). This one comes
        // when it has taken all before it; it closes the connection at what it refuses.
        relay::send(library, &message(FrontendReq::GET_FEATURES, &[]), none)?;
        library.read_exact(&mut [0; HEADER + size_of::<VhostUserU64>()])?;
        library.set_read_timeout(None)?;
        library.set_write_timeout(None)
    }

    /// As one table, which the library takes in the order of addresses, and what does not fit in there one by one.
    fn replay_memory(&self, library: &UnixStream, memory: &GuestMemoryMmap) -> io::Result<()> {
        let regions: Vec<_> = memory
            .iter()
            .map(|region| self.describe(region))
            .collect::<io::Result<_>>()?;
        let (first, more) = regions.split_at(regions.len().min(MAX_ATTACHED_FD_ENTRIES));
        if !first.is_empty() {
            let mut body = VhostUserMemory::new(first.len() as u32).as_slice().to_vec();
            for (region, _) in first {
                body.extend_from_slice(region.as_slice());
            }
            let files: Vec<_> = first.iter().map(|(_, file)| file).collect();
            let table = message(FrontendReq::SET_MEM_TABLE, &body);
            relay::send(library, &table, &files)?;
        }
        for (region, file) in more {
            let region = VhostUserSingleMemoryRegion::new(
                region.guest_phys_addr,
                region.memory_size,
                region.user_addr,
                region.mmap_offset,
            );
            let message = message(FrontendReq::ADD_MEM_REG, region.as_slice());
            relay::send(library, &message, &[file])?;
        }
        Ok(())
    }

    fn describe<'a>(
        &self,
        region: &'a GuestRegionMmap,
    ) -> io::Result<(VhostUserMemoryRegion, impl AsFd + use<'a>)> {
        let gpa = region.start_addr().0;
        let area = self.areas.iter().find(|area| area.gpa == gpa);
        let (Some(area), Some(file)) = (area, region.file_offset()) else {
            let error = format!("memory at {gpa:#x} is not the front-end's");
            return Err(io::Error::other(error));
        };
        let described =
            VhostUserMemoryRegion::new(gpa, region.len(), area.user_address, file.start());
        Ok((described, file.file()))
    }
}

fn message(request: FrontendReq, body: &[u8]) -> Vec<u8> {
    let header = [u32::from(request), FLAGS, body.len() as u32];
    let mut message: Vec<_> = header.into_iter().flat_map(u32::to_ne_bytes).collect();
    message.extend_from_slice(body);
    message
}

/// The regions of SET_MEM_TABLE: as many as its head says and there are.
fn table(body: &[u8]) -> Vec<Area> {
    let Some(head) = read::<VhostUserMemory>(body) else {
        return Vec::new();
    };
    let regions = body.get(size_of::<VhostUserMemory>()..).unwrap_or_default();
    regions
        .chunks_exact(size_of::<VhostUserMemoryRegion>())
        .take(usize::try_from(head.num_regions).unwrap_or(usize::MAX))
        .filter_map(read::<VhostUserMemoryRegion>)
        .map(|region| Area::new(&region))
        .collect()
}

/// The structure that bytes begin with.
pub(super) fn read<T: ByteValued>(bytes: &[u8]) -> Option<T> {
    T::read_exact_from(bytes).ok()
}
