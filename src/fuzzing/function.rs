// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Any accesses to configuration space and BARs, with any bytes in memory: the function and the software host, without
//! sockets.
//!
//! The input is a series of actions; see [`function`]. `fuzz/` has the libFuzzer target, and `fuzz/seeds/` inputs that
//! come far, which the unit tests run as well.

use std::sync::{Arc, RwLock};

use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use crate::fuzzing::Input;
use crate::host::mapping::{IovaRange, Mapping, MappingTable};
use crate::host::soft::{SoftHost, default_properties};
use crate::host::{Answer, Attachment, Host, HostEvent, PageRequests, Requester, Translations};
use crate::soft_endpoint::InterruptKind;
use crate::soft_endpoint::pci_function::{PciFunction, Region};
use crate::spec::{DomainId, EndpointId, Gpa, MapFlags};

const ENDPOINT: EndpointId = EndpointId(1);
const DOMAIN: DomainId = DomainId(1);

/// Memory that nothing maps, and behind it what is mapped from [`IOVA`] on.
const UNMAPPED: u64 = 0x8000;
const MAPPED: u64 = 0x8000;
const IOVA: u64 = 0x1000;

/// The most actions of one input.
const MAX_ACTIONS: usize = 64;
/// How often DMA is given a chance to come to its end.
const MAX_LOOKS: usize = 1000;

/// Memory Space Enable and Bus Master Enable.
const ENABLED: [u8; 2] = [6, 0];

/// Runs one input.
///
/// Actions, a byte each: 0 writes registers (u8 place, u16 offset, u8 length, bytes), 1 reads registers (u8 place, u16
/// offset, u8 length), 2 writes guest memory that is mapped (u16 address, u8 length, bytes), 3 attaches (u8: blocked,
/// domain, domain with page requests), 4 answers page requests (u8 code), 5 waits for the end of a command, 6 takes
/// interrupts away, 7 resets. Places are configuration space and the BARs 0 to 2.
pub fn function(input: &[u8]) {
    let run = Run::new();
    let mut input = Input(input);
    for _ in 0..MAX_ACTIONS {
        // An input that ends early is complete.
        if run.act(&mut input).is_none() {
            break;
        }
    }
    run.end();
}

impl<'a> Input<'a> {
    fn place(&mut self) -> Option<Region> {
        Some(match self.u8()? % 4 {
            0 => Region::Config,
            bar => Region::Bar(usize::from(bar) - 1),
        })
    }

    fn counted(&mut self) -> Option<&'a [u8]> {
        let length = self.u8()?;
        self.bytes(length.into())
    }
}

struct Run {
    memory: GuestMemoryMmap,
    host: Arc<SoftHost>,
    device: PciFunction,
}

impl Run {
    fn new() -> Self {
        let length = (UNMAPPED + MAPPED) as usize;
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), length)]).expect("memory");
        let host = Arc::new(SoftHost::new().expect("host"));
        host.add_endpoint(ENDPOINT, default_properties())
            .expect("endpoint");
        host.update_memory(&memory, &[], &[]).expect("memory");
        let mut table = MappingTable::default();
        let mapping = Mapping {
            range: IovaRange::new(IOVA, IOVA + MAPPED - 1).expect("range"),
            gpa: Gpa(UNMAPPED),
            flags: MapFlags::READ | MapFlags::WRITE,
        };
        table.insert(&mapping).expect("empty");
        host.create_domain(DOMAIN, Translations::Mappings(Arc::new(RwLock::new(table))))
            .expect("domain");
        let device = PciFunction::new(ENDPOINT, &host).expect("device");
        let run = Self {
            memory,
            host,
            device,
        };
        run.attach(1);
        run.write(Region::Config, 4, &ENABLED);
        run
    }

    fn act(&self, input: &mut Input<'_>) -> Option<()> {
        match input.u8()? % 8 {
            0 => {
                let (place, offset) = (input.place()?, input.u16()?.into());
                self.write(place, offset, input.counted()?);
            }
            1 => {
                let (place, offset) = (input.place()?, input.u16()?.into());
                let mut data = vec![0; input.u8()?.into()];
                let fits = offset + data.len() as u64 <= PciFunction::length(place);
                let read = self.device.read(place, offset, &mut data);
                assert_eq!(read.is_ok(), fits);
            }
            2 => {
                let address = GuestAddress(UNMAPPED + u64::from(input.u16()?) % MAPPED);
                // It may go beyond the end.
                let _ = self.memory.write(input.counted()?, address);
            }
            3 => self.attach(input.u8()?),
            4 => self.answer(input.u8()?),
            5 => self.settle(),
            6 => {
                for kind in [InterruptKind::Intx, InterruptKind::Msi, InterruptKind::Msix] {
                    self.device.function().interrupts().disable(kind);
                }
            }
            _ => {
                self.device.reset();
                self.write(Region::Config, 4, &ENABLED);
            }
        }
        Some(())
    }

    fn write(&self, place: Region, offset: u64, data: &[u8]) {
        let fits = offset + data.len() as u64 <= PciFunction::length(place);
        assert_eq!(self.device.write(place, offset, data).is_ok(), fits);
    }

    fn attach(&self, to: u8) {
        let requester = Requester {
            endpoint: ENDPOINT,
            pasid: None,
        };
        let domain = |page_requests| Attachment::Domain {
            domain: DOMAIN,
            page_requests,
        };
        let to = match to % 3 {
            0 => Attachment::Blocked,
            1 => domain(PageRequests::Unwanted),
            _ => domain(PageRequests::Reported),
        };
        self.host.attach(requester, to).expect("attach");
    }

    fn answer(&self, code: u8) {
        let answer = match code % 3 {
            0 => Answer::Success,
            1 => Answer::Invalid,
            _ => Answer::ResponseFailure,
        };
        let mut cookies = Vec::new();
        self.host.take_events(&mut |event| {
            if let HostEvent::PageRequest(group) = event {
                cookies.push(group.cookie);
            }
        });
        for cookie in cookies {
            // One that was withdrawn since is unknown.
            let _ = self.host.respond(cookie, answer);
        }
    }

    /// Waits until BAR 0 has an interrupt to show, which is at the end of a command.
    fn settle(&self) {
        for _ in 0..MAX_LOOKS {
            let mut status = [0; 4];
            let read = self.device.read(Region::Bar(0), 8, &mut status);
            if read.is_err() || status[0] & 0x40 != 0 {
                break;
            }
            std::thread::yield_now();
        }
    }

    /// What must hold at the end of every input.
    fn end(self) {
        self.device.reset();
        let fresh = PciFunction::new(ENDPOINT, &self.host).expect("device");
        let config = |device: &PciFunction| {
            let mut bytes = vec![0; 4096];
            device.read(Region::Config, 0, &mut bytes).expect("read");
            bytes
        };
        assert!(config(&self.device) == config(&fresh), "a reset resets");
        let mut unmapped = vec![0; UNMAPPED as usize];
        self.memory
            .read_slice(&mut unmapped, GuestAddress(0))
            .expect("memory");
        assert!(unmapped.iter().all(|&byte| byte == 0), "DMA astray");
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;
    use std::time::{Duration, Instant};

    use zerocopy::{FromZeros, IntoBytes};

    use super::*;
    use crate::soft_endpoint::engine::{Descriptor, registers};

    /// How long a command may take.
    const PATIENCE: Duration = Duration::from_secs(60);

    fn seeds() -> PathBuf {
        PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("fuzz/seeds/function")
    }

    #[test]
    fn every_seed_is_survived() {
        let seeds = std::fs::read_dir(seeds()).expect("a directory");
        let mut count = 0;
        for seed in seeds {
            function(&std::fs::read(seed.expect("a seed").path()).expect("a seed"));
            count += 1;
        }
        assert!(count >= 4, "{count} seeds");
    }

    /// The seeds are not only survived: a copy in one of them has copied.
    #[test]
    fn a_seed_comes_as_far_as_a_copy() {
        let run = Run::new();
        let seed = std::fs::read(seeds().join("copy")).expect("a seed");
        let mut input = Input(&seed);
        while run.act(&mut input).is_some() {}
        // On a busy machine the command goes on when an input has been waited for long enough.
        let mut bytes = [0; 4];
        let at = GuestAddress(UNMAPPED + 0x2000);
        let start = Instant::now();
        while &bytes != b"copy" {
            assert!(start.elapsed() < PATIENCE, "{bytes:x?}");
            std::thread::sleep(Duration::from_millis(1));
            run.memory.read_slice(&mut bytes, at).expect("memory");
        }
    }

    #[derive(Default)]
    struct Seed(Vec<u8>);

    impl Seed {
        fn write(mut self, place: u8, offset: u64, data: &[u8]) -> Self {
            self.0.extend([0, place]);
            self.0.extend((offset as u16).to_le_bytes());
            self.0.push(data.len() as u8);
            self.0.extend(data);
            self
        }

        fn register(self, place: u8, offset: u64, value: u32) -> Self {
            self.write(place, offset, &value.to_le_bytes())
        }

        fn memory(mut self, address: u16, data: &[u8]) -> Self {
            self.0.push(2);
            self.0.extend(address.to_le_bytes());
            self.0.push(data.len() as u8);
            self.0.extend(data);
            self
        }

        fn actions(mut self, actions: &[u8]) -> Self {
            self.0.extend(actions);
            self
        }

        fn command(self, command: u32) -> Self {
            self.register(1, 0x0c, IOVA as u32)
                .register(1, 0x14, IOVA as u32 + 0x2000)
                .register(1, 0x1c, 4)
                .register(1, 0x04, command)
                .actions(&[5])
        }
    }

    /// Makes the seeds again: `cargo test --lib make_the_seeds -- --ignored`.
    #[test]
    #[ignore = "writes to fuzz/seeds"]
    fn make_the_seeds() {
        use registers::engine::{DOORBELL, FIRST, HEAD};
        let ats_pri_pasid = |seed: Seed| {
            seed.write(0, 0x106, &[0, 0x80])
                .write(0, 0x11c, &[64, 0, 0, 0])
                .write(0, 0x114, &[1, 0])
                .write(0, 0x126, &[7, 0])
        };
        let mut commands = Seed::default();
        for bit in 0..10 {
            commands = commands.command(1 << bit);
        }
        let descriptor = |operation, next: u64| {
            let mut descriptor = Descriptor::new_zeroed();
            descriptor.operation = operation;
            descriptor.address.set(IOVA + 0x1000);
            descriptor.other.set(IOVA + 0x2000);
            descriptor.length.set(64);
            descriptor.next.set(next);
            descriptor.as_bytes().to_vec()
        };
        let start = |seed: Seed| {
            let seed = ats_pri_pasid(seed).register(3, FIRST + HEAD, IOVA as u32);
            seed.register(3, FIRST + DOORBELL, 1).actions(&[5])
        };
        let chain =
            [1, 2, 3, 5, 7]
                .iter()
                .zip(1..)
                .fold(Seed::default(), |seed, (&operation, number)| {
                    let next = if number == 5 { 0 } else { IOVA + number * 64 };
                    seed.memory((number as u16 - 1) * 64, &descriptor(operation, next))
                });
        let looping = Seed::default().memory(0, &descriptor(2, IOVA));
        let seeds = [
            ("copy", Seed::default().memory(0, b"copy").command(1 << 5)),
            ("commands", commands),
            ("unmapped", Seed::default().register(1, 0x10, 9).command(8)),
            ("page-request", {
                let miss = Seed::default().actions(&[3, 2]).register(1, 0x10, 9);
                miss.register(1, 0x1c, 4)
                    .register(1, 0x04, 8)
                    .actions(&[5, 4, 1, 5])
            }),
            ("engine", start(chain)),
            ("engine-loop", start(looping).actions(&[7])),
            (
                "resets",
                Seed::default().command(16).write(0, 0x88, &[0, 0x80]),
            ),
        ];
        let directory = super::tests::seeds();
        std::fs::create_dir_all(&directory).expect("a directory");
        for (name, seed) in seeds {
            std::fs::write(directory.join(name), &seed.0).expect("a seed");
        }
    }
}
