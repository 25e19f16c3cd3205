// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What can be wrong before anything runs: one line each, with what to do.

use std::fmt;
use std::fs::{self, OpenOptions};
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use crate::spec::EndpointId;

/// Why the host or one of its endpoints cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    /// A device file cannot be opened: the file, why, what to do.
    #[error("{0}: {1}; {2}")]
    Open(String, #[source] io::Error, &'static str),
    /// The descriptor is not an iommufd, or the kernel is too old.
    #[error(
        "the iommufd does not work: {0}; it needs an open /dev/iommu of Linux 6.2 or newer (wanted: 6.14)"
    )]
    NotIommufd(String),
    /// The descriptor is not the kernel's log.
    #[error("the kernel's log cannot be read: {0}; it needs an open /dev/kmsg")]
    NotKernelLog(#[source] io::Error),
    /// A VFIO device cannot be bound: the device, why, what to do.
    #[error("{0}: {1}; {2}")]
    Bind(String, String, &'static str),
    /// No IOMMU is in front of a device: its file, or its address on this machine.
    #[error(
        "{0}: no IOMMU is in front of it, so it could reach all memory of this machine; switch the IOMMU on in the \
         firmware and the kernel, or take a device behind one"
    )]
    NoIommu(String),
    /// The id of a shared device cannot be found out.
    #[error(
        "the device's id in the iommufd cannot be found out; start what binds the device first (QEMU: with -S) and give \
         the iommufd that it uses, or pass the id with dev-id="
    )]
    NoDeviceId,
    /// A mock device without the id of the device.
    #[error("a mock device needs dev-id=")]
    MockWithoutDeviceId,
    /// The endpoint is there already.
    #[error("endpoint {0} exists already")]
    Exists(EndpointId),
    /// Another endpoint is that device.
    #[error("device {0} of the iommufd is endpoint {1} already")]
    DeviceInUse(u32, EndpointId),
    /// The device shares its IOMMU group with another that is in use: the endpoint, the group, the other.
    #[error(
        "endpoint {0} is in IOMMU group {1}, as {2} is: the IOMMU cannot tell their accesses apart, and the kernel moves \
         them together; give the guest one of them only, or devices behind ports with ACS"
    )]
    SharesGroup(EndpointId, u32, GroupMate),
    /// The kernel has no memory, no descriptors or no other resource for it: what was asked, and its error. The device is
    /// where it was, or detached, and can be added again.
    #[error("{0}; try again when the machine has memory to spare")]
    NoMemory(String),
    /// The device cannot be attached: the endpoint, why.
    #[error("endpoint {0}: {1}")]
    Attach(EndpointId, String),
    /// What the device can address does not go with the others.
    #[error("endpoint {0}: {1}; start with it on the command line")]
    Incompatible(EndpointId, String),
}

/// Another device in the IOMMU group of an endpoint's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GroupMate {
    /// That of another endpoint.
    Endpoint(EndpointId),
    /// One that is no endpoint and that another process has bound to the same iommufd: its PCI address.
    Device(String),
}

impl fmt::Display for GroupMate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Endpoint(endpoint) => write!(f, "endpoint {endpoint}"),
            Self::Device(address) => write!(f, "{address}, which is in this iommufd too,"),
        }
    }
}

/// Opens the iommufd device, `/dev/iommu` by default.
///
/// # Errors
/// [`SetupError::Open`], with what to do.
pub fn open_iommufd(path: &Path) -> Result<OwnedFd, SetupError> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .open(path)
        .map_err(|error| {
            let hint = match error.kind() {
                io::ErrorKind::NotFound => {
                    "the kernel needs CONFIG_IOMMUFD (Linux 6.2 or newer; modprobe iommufd)"
                }
                io::ErrorKind::PermissionDenied => {
                    "give this user access to it, or pass an open descriptor with --iommufd-fd"
                }
                _ => "pass a working one with --iommufd or --iommufd-fd",
            };
            SetupError::Open(path.display().to_string(), error, hint)
        })?;
    Ok(file.into())
}

/// How many bytes of memory this process may pin: its soft RLIMIT_MEMLOCK, in bytes. `None` if it is unlimited, if the
/// process has CAP_IPC_LOCK, or if `/proc/self` cannot be read.
pub fn pinning_limit() -> Option<u64> {
    let limits = fs::read_to_string("/proc/self/limits").ok()?;
    let status = fs::read_to_string("/proc/self/status").ok()?;
    memlock_limit(&limits).filter(|_| !may_lock_memory(&status))
}

/// Says when pinning guest memory will soon hit a limit.
pub(super) fn warn_of_memlock() {
    if let Some(limit) = pinning_limit() {
        log::warn!(
            "memory that endpoints can reach is pinned, and this user may pin {} MiB: raise RLIMIT_MEMLOCK (ulimit -l; \
             LimitMEMLOCK= in systemd) to the size of the guest, or grant CAP_IPC_LOCK",
            limit >> 20
        );
    }
}

/// The soft limit, in bytes; `None` without one.
fn memlock_limit(limits: &str) -> Option<u64> {
    let line = limits
        .lines()
        .find_map(|line| line.strip_prefix("Max locked memory"))?;
    line.split_whitespace().next()?.parse().ok()
}

/// Whether the effective capabilities have CAP_IPC_LOCK.
fn may_lock_memory(status: &str) -> bool {
    const CAP_IPC_LOCK: u32 = 14;
    status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
        .is_some_and(|mask| mask >> CAP_IPC_LOCK & 1 == 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_and_capabilities_are_read() {
        let limits = "Limit                     Soft Limit           Hard Limit           Units     \n\
                      Max locked memory         8388608              8388608              bytes     \n";
        assert_eq!(memlock_limit(limits), Some(8 << 20));
        let unlimited = limits.replace("8388608", "unlimited");
        assert_eq!(memlock_limit(&unlimited), None);
        assert!(may_lock_memory("Name:\tx\nCapEff:\t000001ffffffffff\n"));
        assert!(!may_lock_memory("CapEff:\t0000000000000000\n"));
        assert!(!may_lock_memory(""));
    }

    #[test]
    fn what_is_missing_is_said_with_what_to_do() {
        let error = open_iommufd(Path::new("/nonexistent/iommu"))
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("/nonexistent/iommu") && error.contains("CONFIG_IOMMUFD"),
            "{error}"
        );
        assert!(!error.contains('\n'));
    }
}
