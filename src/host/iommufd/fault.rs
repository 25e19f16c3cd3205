// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The fault queue: page requests of all endpoints, and the answers to them.
//!
//! The kernel names a group by a cookie, and uses a cookie again as soon as its group is answered, by us or by
//! itself when an attachment ends. So the cookies that are outstanding are written down here, under the lock under
//! which the queue is read and answered.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, RawFd};

use parking_lot::{Mutex, MutexGuard};

use super::context::{Context, Object};
use super::kernel::{self, CallError};
use crate::host::{Answer, Cookie, HostError, HostEvent, PageRequest, PageRequestGroup, Requester};
use crate::spec::{EndpointId, EventFlags, Iova, Pasid};

/// `struct iommu_hwpt_pgfault`, in bytes.
const FAULT_LEN: usize = 40;
/// `IOMMU_PGFAULT_FLAGS_PASID_VALID`. Other flags are not looked at: kernels leak internal ones.
const PASID_VALID: u32 = 1;
/// Page requests read at a time, unless a group is larger.
const BATCH: usize = 64;
/// The largest group that we make room for. PCI bounds a device's page requests by its credits, 2^32 at most; no
/// device comes near.
const MAX_BATCH: usize = 1 << 16;

/// The fault queue of a context.
pub(super) struct FaultQueue {
    // The descriptor is closed before the object is destroyed.
    file: File,
    object: Object,
    ledger: Mutex<FaultLedger>,
}

struct FaultLedger {
    /// Ids of devices in the context.
    endpoints: HashMap<u32, EndpointId>,
    /// Read and not answered.
    outstanding: HashMap<u32, Requester>,
    buffer: Vec<u8>,
    strangers: u64,
}

impl FaultQueue {
    pub fn new(context: &Context) -> Result<Self, CallError> {
        let (object, file) = context.fault_queue()?;
        Ok(Self {
            file,
            object,
            ledger: Mutex::new(FaultLedger {
                endpoints: HashMap::new(),
                outstanding: HashMap::new(),
                buffer: vec![0; BATCH * FAULT_LEN],
                strangers: 0,
            }),
        })
    }

    pub fn id(&self) -> u32 {
        self.object.id()
    }

    pub fn fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }

    fn ledger(&self) -> MutexGuard<'_, FaultLedger> {
        self.ledger.lock()
    }

    /// From now on, page requests of the device are the endpoint's.
    pub fn add(&self, dev_id: u32, endpoint: EndpointId) {
        self.ledger().endpoints.insert(dev_id, endpoint);
    }

    /// The endpoint is gone, and the kernel has answered its groups.
    pub fn remove(&self, dev_id: u32, endpoint: EndpointId) {
        let mut ledger = self.ledger();
        ledger.endpoints.remove(&dev_id);
        ledger
            .outstanding
            .retain(|_, requester| requester.endpoint != endpoint);
    }

    /// The requester moved, and the kernel has answered its groups.
    pub fn withdraw(&self, requester: Requester) {
        self.ledger()
            .outstanding
            .retain(|_, other| *other != requester);
    }

    /// Answers the groups of a requester that stays where it is.
    pub fn refuse(&self, requester: Requester) {
        let mut ledger = self.ledger();
        ledger.outstanding.retain(|&cookie, other| {
            if *other != requester {
                return true;
            }
            if let Err(error) = write_answer(&self.file, cookie, Answer::Invalid) {
                log::error!("{requester}: a page request stays without an answer: {error}");
            }
            false
        });
    }

    /// Reads what has come, a batch at most.
    pub fn take(&self, sink: &mut dyn FnMut(HostEvent)) {
        let mut ledger = self.ledger();
        let FaultLedger {
            endpoints,
            outstanding,
            buffer,
            strangers,
        } = &mut *ledger;
        let length = self.read(buffer);
        let mut faults = buffer[..length]
            .chunks_exact(FAULT_LEN)
            .map(Fault::parse)
            .peekable();
        while let Some(first) = faults.next() {
            let mut pages = vec![first.page];
            // The kernel hands out whole groups, and no two of them have the same cookie.
            while let Some(next) = faults.next_if(|next| next.cookie == first.cookie) {
                pages.push(next.page);
            }
            let Some(&endpoint) = endpoints.get(&first.dev_id) else {
                // An endpoint that is just being added or removed.
                *strangers += 1;
                if strangers.is_power_of_two() {
                    log::warn!(
                        "page request of device {} refused: it is no endpoint ({strangers} so far)",
                        first.dev_id
                    );
                }
                if let Err(error) = write_answer(&self.file, first.cookie, Answer::Invalid) {
                    log::error!("a page request stays without an answer: {error}");
                }
                continue;
            };
            let requester = Requester {
                endpoint,
                pasid: first.pasid,
            };
            outstanding.insert(first.cookie, requester);
            sink(HostEvent::PageRequest(PageRequestGroup {
                requester,
                cookie: Cookie(first.cookie.into()),
                pages,
            }));
        }
    }

    /// Reads whole groups and returns the bytes read; makes room for a group that is larger than the buffer.
    fn read(&self, buffer: &mut Vec<u8>) -> usize {
        loop {
            let too_small = match (&self.file).read(buffer) {
                // Empty, or, on kernels before 7.2, a group that does not fit.
                Ok(0) => kernel::is_readable(&self.file),
                Ok(length) => return length,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) if error.raw_os_error() == Some(libc::EINVAL) => true,
                Err(error) => {
                    log::error!("reading the fault queue: {error}");
                    false
                }
            };
            if !too_small {
                return 0;
            }
            if buffer.len() >= MAX_BATCH * FAULT_LEN {
                log::error!(
                    "a group of more than {MAX_BATCH} page requests blocks the fault queue"
                );
                return 0;
            }
            buffer.resize(buffer.len() * 2, 0);
        }
    }

    /// Answers a group.
    pub fn respond(&self, cookie: Cookie, answer: Answer) -> Result<(), HostError> {
        let mut ledger = self.ledger();
        let number = u32::try_from(cookie.0).map_err(|_| HostError::NoGroup(cookie))?;
        if !ledger.outstanding.contains_key(&number) {
            return Err(HostError::NoGroup(cookie));
        }
        match write_answer(&self.file, number, answer) {
            Ok(()) => {
                ledger.outstanding.remove(&number);
                Ok(())
            }
            // The kernel does not have it any more.
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
                ledger.outstanding.remove(&number);
                Err(HostError::NoGroup(cookie))
            }
            Err(error) => Err(HostError::Internal(format!(
                "answering a page request: {error}"
            ))),
        }
    }
}

/// Writes one `struct iommu_hwpt_page_response`: of several, an error would hide behind a short count.
fn write_answer(mut queue: &File, cookie: u32, answer: Answer) -> io::Result<()> {
    let code: u32 = match answer {
        Answer::Success => 0,
        // Linux has no third code: device drivers cannot use it.
        Answer::Invalid | Answer::ResponseFailure => 1,
    };
    let mut response = [0; 8];
    response[..4].copy_from_slice(&cookie.to_ne_bytes());
    response[4..].copy_from_slice(&code.to_ne_bytes());
    loop {
        match queue.write(&response) {
            Ok(length) if length == response.len() => return Ok(()),
            Ok(_) => return Err(io::ErrorKind::WriteZero.into()),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// A page request as the kernel reports it.
struct Fault {
    dev_id: u32,
    pasid: Option<Pasid>,
    cookie: u32,
    page: PageRequest,
}

impl Fault {
    /// From [`FAULT_LEN`] bytes.
    fn parse(bytes: &[u8]) -> Self {
        let word = |offset: usize| {
            let mut word = [0; 4];
            word.copy_from_slice(&bytes[offset..offset + 4]);
            u32::from_ne_bytes(word)
        };
        let mut address = [0; 8];
        address.copy_from_slice(&bytes[24..32]);
        Self {
            dev_id: word(4),
            pasid: (word(0) & PASID_VALID != 0).then(|| Pasid(word(8))),
            cookie: word(36),
            page: PageRequest {
                address: Iova(u64::from_ne_bytes(address)),
                // READ, WRITE, EXEC and PRIV are the same bits here and there.
                access: EventFlags::from_bits_truncate(word(16)) & EventFlags::ACCESS,
                length: word(32),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use iommufd_bindings::iommu_hwpt_pgfault;
    use std::mem::offset_of;

    #[test]
    fn a_fault_is_parsed_and_unknown_flags_are_masked() {
        assert_eq!(size_of::<iommu_hwpt_pgfault>(), FAULT_LEN);
        let mut bytes = [0u8; FAULT_LEN];
        let mut put = |offset: usize, value: &[u8]| {
            bytes[offset..offset + value.len()].copy_from_slice(value);
        };
        put(
            offset_of!(iommu_hwpt_pgfault, flags),
            &0xffu32.to_ne_bytes(),
        );
        put(offset_of!(iommu_hwpt_pgfault, dev_id), &7u32.to_ne_bytes());
        put(offset_of!(iommu_hwpt_pgfault, pasid), &5u32.to_ne_bytes());
        put(
            offset_of!(iommu_hwpt_pgfault, perm),
            &0xfff3u32.to_ne_bytes(),
        );
        put(
            offset_of!(iommu_hwpt_pgfault, addr),
            &0x1234_5678_9abcu64.to_ne_bytes(),
        );
        put(offset_of!(iommu_hwpt_pgfault, length), &99u32.to_ne_bytes());
        put(offset_of!(iommu_hwpt_pgfault, cookie), &3u32.to_ne_bytes());
        let fault = Fault::parse(&bytes);
        assert_eq!((fault.dev_id, fault.cookie), (7, 3));
        assert_eq!(fault.pasid, Some(Pasid(5)));
        assert_eq!(fault.page.address, Iova(0x1234_5678_9abc));
        assert_eq!(fault.page.access, EventFlags::READ | EventFlags::WRITE);
        assert_eq!(fault.page.length, 99);
    }
}
