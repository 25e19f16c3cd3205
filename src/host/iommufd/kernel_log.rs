// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Accesses that the IOMMU refused, from the kernel's log.
//!
//! Linux tells a process of an access through a page request alone, and a device without PRI makes none: its access is
//! refused, and the kernel's log has a line of it. Where an operator allows that (`--kernel-log`), lines of endpoints become
//! fault reports of the guest.
//!
//! The kernel writes few: its drivers have a limit, 10 lines in 5 seconds for a whole machine with VT-d, two of them for an
//! access. Processes can write into the log, and the kernel marks their lines: only its own are looked at.

mod lines;

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read, Seek, SeekFrom};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use parking_lot::Mutex;
use rustix::fs::{major, minor};

use super::kernel;
use super::startup::SetupError;
use crate::host::{Fault, HostEvent, Requester};
use crate::spec::{EndpointId, EventFlags, Reason};
use lines::{Line, Refused};

/// The device number of `/dev/kmsg` (Documentation/admin-guide/devices.txt of Linux).
const KMSG: (u32, u32) = (1, 11);
/// The kernel gives no longer record (`PRINTK_MESSAGE_MAX`, with room for its properties).
const MAX_RECORD: usize = 8192;
/// Records read at a time.
const BATCH: usize = 64;

/// The kernel's log, from when it was opened on.
pub struct KernelLog {
    file: File,
    reader: Mutex<Reader>,
}

#[derive(Default)]
struct Reader {
    /// PCI addresses of devices whose lines are wanted.
    endpoints: HashMap<u32, EndpointId>,
    /// The number that the next record has if none is lost.
    next: Option<u64>,
    /// The first of two lines of an SMMU, by the SMMU's name.
    half: Option<(String, Refused)>,
}

impl KernelLog {
    /// Opens it.
    ///
    /// # Errors
    /// [`SetupError::Open`], [`SetupError::NotKernelLog`].
    pub fn open(path: &Path) -> Result<Self, SetupError> {
        let open = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_NONBLOCK)
            .open(path);
        let file = open.map_err(|error| {
            let hint = match error.kind() {
                ErrorKind::PermissionDenied => {
                    "while kernel.dmesg_restrict is 1 it is for processes with CAP_SYSLOG: start with that, or have who starts \
                     this process open it, and pass it with --kernel-log fd=N"
                }
                _ => "it is usually /dev/kmsg",
            };
            SetupError::Open(path.display().to_string(), error, hint)
        })?;
        Self::new(file.into())
    }

    /// Takes it open. What it has so far is passed by.
    ///
    /// # Errors
    /// [`SetupError::NotKernelLog`].
    pub fn new(fd: OwnedFd) -> Result<Self, SetupError> {
        let file = File::from(fd);
        let number = file.metadata().map_err(SetupError::NotKernelLog)?.rdev();
        if (major(number), minor(number)) != KMSG {
            return Err(SetupError::NotKernelLog(ErrorKind::InvalidInput.into()));
        }
        (&file)
            .seek(SeekFrom::End(0))
            .map_err(SetupError::NotKernelLog)?;
        Ok(Self::over(file))
    }

    fn over(file: File) -> Self {
        let reader = Mutex::default();
        Self { file, reader }
    }

    pub(super) fn fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }

    /// From now on, lines about the device at this PCI address concern the endpoint.
    pub(super) fn add(&self, device: u32, endpoint: EndpointId) {
        self.reader.lock().endpoints.insert(device, endpoint);
    }

    /// Lines concern the endpoint no more.
    pub(super) fn remove(&self, endpoint: EndpointId) {
        let mut reader = self.reader.lock();
        reader.endpoints.retain(|_, other| *other != endpoint);
    }

    /// Reads what has come, a batch at most.
    pub(super) fn take(&self, sink: &mut dyn FnMut(HostEvent)) {
        let mut reader = self.reader.lock();
        let mut buffer = [0; MAX_RECORD];
        for _ in 0..BATCH {
            // An inherited descriptor may block.
            if !kernel::is_readable(&self.file) {
                return;
            }
            match (&self.file).read(&mut buffer) {
                Ok(length) => reader.record(&buffer[..length], sink),
                // Records were overwritten: the number of the next one tells how many.
                Err(error) if error.raw_os_error() == Some(libc::EPIPE) => {}
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error) => {
                    log::error!("reading the kernel's log: {error}");
                    return;
                }
            }
        }
    }
}

impl Reader {
    /// A record: `6,339,5140900,-;the text`, and lines with properties.
    fn record(&mut self, bytes: &[u8], sink: &mut dyn FnMut(HostEvent)) {
        let record = String::from_utf8_lossy(bytes);
        let Some((head, text)) = record.split_once(';') else {
            return;
        };
        let mut fields = head.split(',').map(str::parse::<u64>);
        let (Some(Ok(priority)), Some(Ok(number))) = (fields.next(), fields.next()) else {
            return;
        };
        let expected = self.next.replace(number.wrapping_add(1)).unwrap_or(number);
        if let Some(lost @ 1..) = number.checked_sub(expected) {
            sink(HostEvent::LogLinesLost(lost));
        }
        // Facility 0 is the kernel's own, which no process can write (`devkmsg_write`).
        if priority >> 3 == 0 {
            self.line(text.lines().next().unwrap_or_default(), sink);
        }
    }

    fn line(&mut self, text: &str, sink: &mut dyn FnMut(HostEvent)) {
        match lines::parse(text) {
            Line::Refused(refused) => self.tell(refused, sink),
            Line::First(name, refused) => {
                if let Some((_, alone)) = self.half.replace((name.to_owned(), refused)) {
                    self.tell(alone, sink);
                }
            }
            Line::Second(name, access) => {
                if let Some((_, first)) = self.half.take_if(|(first, _)| first == name) {
                    self.tell(with_access(first, access), sink);
                }
            }
            Line::Other => {}
        }
    }

    fn tell(&self, refused: Refused, sink: &mut dyn FnMut(HostEvent)) {
        let Some(&endpoint) = self.endpoints.get(&refused.device) else {
            return;
        };
        sink(HostEvent::LoggedFault(Fault {
            requester: Requester {
                endpoint,
                pasid: refused.pasid,
            },
            reason: refused.reason,
            address: refused.address,
            access: refused.access,
        }));
    }
}

/// Where the SMMU did not get as far as the device's own access, the driver has no mapping to mend.
fn with_access(first: Refused, access: Option<EventFlags>) -> Refused {
    match access {
        Some(access) => Refused { access, ..first },
        None => Refused {
            reason: Reason::Unknown,
            ..first
        },
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixDatagram;

    use super::*;
    use crate::spec::Iova;

    const ENDPOINT: EndpointId = EndpointId(9);
    const FAULT: &str = "DMAR: [DMA Write NO_PASID] Request device [0000:00:02.0] fault addr 0x1000 [fault reason 0x05] x";

    /// A log, and where its records come from.
    fn log() -> (KernelLog, UnixDatagram) {
        let (reader, writer) = UnixDatagram::pair().expect("pair");
        let log = KernelLog::over(File::from(OwnedFd::from(reader)));
        log.add(0x10, ENDPOINT);
        (log, writer)
    }

    fn events(log: &KernelLog, writer: &UnixDatagram, records: &[String]) -> Vec<HostEvent> {
        let mut events = Vec::new();
        for record in records {
            writer.send(record.as_bytes()).expect("send");
        }
        log.take(&mut |event| events.push(event));
        events
    }

    fn fault(access: EventFlags) -> HostEvent {
        HostEvent::LoggedFault(Fault {
            requester: Requester {
                endpoint: ENDPOINT,
                pasid: None,
            },
            reason: Reason::Mapping,
            address: Some(Iova(0x1000)),
            access,
        })
    }

    #[test]
    fn a_line_of_the_kernel_becomes_a_fault_and_one_of_a_process_does_not() {
        let (log, writer) = log();
        let told = [fault(EventFlags::WRITE)];
        let record = |priority: u32, number: u32| {
            format!("{priority},{number},77,-;{FAULT}\n SUBSYSTEM=pci\n")
        };
        assert_eq!(events(&log, &writer, &[record(3, 1)]), told);
        // LOG_USER, which is 1, and above.
        assert_eq!(
            events(&log, &writer, &[record(8 + 3, 2), record(16 * 8, 3)]),
            []
        );
        // Behind the first line there are properties, which a device's name is part of.
        let inside = format!("3,4,77,-;something\n DEVICE=x\n{FAULT}");
        assert_eq!(events(&log, &writer, &[inside]), []);
        log.remove(ENDPOINT);
        assert_eq!(events(&log, &writer, &[record(3, 5)]), []);
    }

    #[test]
    fn lost_records_are_counted_from_the_first_that_was_read_on() {
        let (log, writer) = log();
        let record = |number: u64| format!("6,{number},77,-;nothing");
        assert_eq!(events(&log, &writer, &[record(1000)]), []);
        assert_eq!(
            events(&log, &writer, &[record(1001), record(1005)]),
            [HostEvent::LogLinesLost(3)]
        );
        assert_eq!(events(&log, &writer, &[record(1006)]), []);
        // What is no record says nothing.
        let broken = ["", "6", "6,x,1,-;y", "6,2000,1,-"].map(str::to_owned);
        assert_eq!(events(&log, &writer, &broken), []);
    }

    #[test]
    fn two_lines_of_an_smmu_are_one_fault() {
        let (log, writer) = log();
        let mut number = 0;
        let mut record = |text: &str| {
            number += 1;
            format!("3,{number},77,-;arm-smmu-v3 {text}")
        };
        let event =
            "a: event: F_TRANSLATION client: 0000:00:02.0 sid: 0x10 ssid: 0 iova: 0x1000 ipa: 0";
        let data = "unpriv data read s2 \"Input address caused fault\" stag: 0";
        let first = record(event);
        assert_eq!(events(&log, &writer, &[first]), []);
        // Another SMMU's line does not end it.
        let (other, own) = (record(&format!("b: {data}")), record(&format!("a: {data}")));
        let told = [fault(EventFlags::READ)];
        assert_eq!(events(&log, &writer, &[other, own]), told);
        // One that lacks its second line is told when the next comes.
        let alone = [record(event), record(event)];
        let told = [fault(EventFlags::empty())];
        assert_eq!(events(&log, &writer, &alone), told);
        // A second line without a first is none.
        let (own, again) = (record(&format!("a: {data}")), record(&format!("a: {data}")));
        let told = [fault(EventFlags::READ)];
        assert_eq!(events(&log, &writer, &[own, again]), told);
    }

    #[test]
    fn what_is_not_the_log_is_refused() {
        let null = OpenOptions::new()
            .read(true)
            .open("/dev/null")
            .expect("open");
        let refused = KernelLog::new(null.into());
        assert!(matches!(refused, Err(SetupError::NotKernelLog(_))));
        let missing = KernelLog::open(Path::new("/nonexistent/kmsg"));
        assert!(matches!(missing, Err(SetupError::Open(..))));
    }
}
