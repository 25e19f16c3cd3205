// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Devices of VFIO, through their character device.
//!
//! A device that a virtual machine monitor drives is bound by it; we get a duplicate of its descriptor and of the
//! iommufd, and need only the device's id there. A device that no other process has we bind ourselves.

use std::cell::Cell;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use vfio_bindings::bindings::vfio::{
    VFIO_DEVICE_ATTACH_PASID, VFIO_DEVICE_DETACH_PASID, vfio_device_attach_iommufd_pt,
    vfio_device_detach_iommufd_pt,
};

use super::context::{Context, objects};
use super::device::Attach;
use super::error::{is_exhausted, of_file};
use super::group::{Group, link_name};
use super::isolation;
use super::kernel::{self, CallError, Dependent};
use super::startup::SetupError;
use crate::notation::pci_address;

/// A device of VFIO.
pub(super) struct VfioDevice {
    file: File,
    /// `None`: it cannot be found out.
    group: Option<Group>,
}

impl VfioDevice {
    /// Opens a device that no other process uses and binds it. Returns it with its id.
    pub fn open(context: &Context, path: &Path) -> Result<(Self, u32), SetupError> {
        isolation::check_path(path)?;
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .open(path)
            .map_err(|error| {
                of_file(path, error, |error| {
                    let hint = open_hint(&error);
                    SetupError::Open(path.display().to_string(), error, hint)
                })
            })?;
        behind_iommu(&file)?;
        let dev_id = kernel::vfio_bind(file.as_fd(), context.fd()).map_err(|error| {
            error.of_setup(|error| {
                let hint = bind_hint(error.errno);
                SetupError::Bind(path.display().to_string(), error.to_string(), hint)
            })
        })?;
        let listed = listed(&file)?;
        Ok((Self::bound(file, &listed)?, dev_id))
    }

    /// Takes a duplicate of a device that another process has bound to our context. Returns it with its id.
    pub fn shared(
        context: &Context,
        fd: OwnedFd,
        dev_id: Option<u32>,
        taken: &dyn Fn(u32) -> bool,
    ) -> Result<(Self, u32), SetupError> {
        let file = fd.into();
        let told = behind_iommu(&file)?;
        let listed = listed(&file)?;
        let dev_id = match dev_id.or_else(|| own_id(&file, &listed)) {
            Some(id) => id,
            None => only_device(context, taken, told)?.ok_or(SetupError::NoDeviceId)?,
        };
        Ok((Self::bound(file, &listed)?, dev_id))
    }

    /// A device that is bound to our context.
    fn bound(file: File, listed: &[Dependent]) -> Result<Self, SetupError> {
        let sysfs = sysfs_path(&file);
        let found = sysfs.and_then(|sysfs| Group::of(&sysfs, listed));
        let group = match found {
            Ok(group) => Some(group),
            Err(error) if error.raw_os_error().is_some_and(is_exhausted) => {
                return Err(SetupError::NoMemory(format!("IOMMU group: {error}")));
            }
            Err(error) => {
                log::warn!(
                    "the IOMMU group of a device cannot be found out ({error}): give the guest no other device of it, \
                     as the kernel moves them together"
                );
                None
            }
        };
        Ok(Self { file, group })
    }

    fn attach_pt(&self, flags: u32, pasid: u32, pt_id: u32) -> Result<(), CallError> {
        let mut command = vfio_device_attach_iommufd_pt {
            argsz: argsz::<vfio_device_attach_iommufd_pt>(flags),
            flags,
            pt_id,
            pasid,
        };
        kernel::call(self.file.as_fd(), &mut command)
    }

    fn detach_pt(&self, flags: u32, pasid: u32) -> Result<(), CallError> {
        let mut command = vfio_device_detach_iommufd_pt {
            argsz: argsz::<vfio_device_detach_iommufd_pt>(flags),
            flags,
            pasid,
        };
        kernel::call(self.file.as_fd(), &mut command)
    }
}

/// Kernels before 6.15 know these structures without their last field, `pasid`.
fn argsz<T>(flags: u32) -> u32 {
    let whole = size_of::<T>();
    (if flags == 0 {
        whole - size_of::<u32>()
    } else {
        whole
    }) as u32
}

impl Attach for VfioDevice {
    fn attach(&self, hwpt: u32) -> Result<(), CallError> {
        self.attach_pt(0, 0, hwpt)
    }

    fn attach_pasid(&self, pasid: u32, hwpt: u32) -> Result<(), CallError> {
        self.attach_pt(VFIO_DEVICE_ATTACH_PASID, pasid, hwpt)
    }

    fn replace_pasid(&self, pasid: u32, hwpt: u32) -> Result<(), CallError> {
        // The kernel replaces what is attached.
        self.attach_pasid(pasid, hwpt)
    }

    fn detach_pasid(&self, pasid: u32) -> Result<(), CallError> {
        self.detach_pt(VFIO_DEVICE_DETACH_PASID, pasid)
    }

    fn pci_address(&self) -> Option<u32> {
        address(&self.file)
    }

    fn group(&self) -> Option<&Group> {
        self.group.as_ref()
    }

    fn release(&self) -> Result<(), CallError> {
        self.detach_pt(0, 0)
    }
}

fn open_hint(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::NotFound => {
            "bind the device to vfio-pci, with CONFIG_VFIO_DEVICE_CDEV in the kernel"
        }
        io::ErrorKind::PermissionDenied => {
            "give this user access to it, or pass an open descriptor with vfio-fd="
        }
        _ => "it may be in use",
    }
}

fn bind_hint(errno: i32) -> &'static str {
    match errno {
        libc::EPERM => {
            "the machine has no interrupt remapping: boot with iommufd.allow_unsafe_interrupts=1 to accept that"
        }
        libc::EINVAL | libc::EBUSY => {
            "another process uses it: for a device of a virtual machine monitor pass vfio-fd= and its iommufd"
        }
        _ => "see the kernel's log",
    }
}

/// The devices that a reset of this one concerns, with their ids in our context; none where there is no such reset.
fn listed(file: &File) -> Result<Vec<Dependent>, SetupError> {
    match kernel::hot_reset_info(file.as_fd()) {
        Ok(listed) => Ok(listed),
        Err(error) if is_exhausted(error.errno) => Err(SetupError::NoMemory(error.to_string())),
        Err(_) => Ok(Vec::new()),
    }
}

/// The id of a device, where it is listed.
fn own_id(file: &File, listed: &[Dependent]) -> Option<u32> {
    let own = address(file)?;
    listed
        .iter()
        .find(|device| device.address == own)
        .and_then(|device| u32::try_from(device.dev_id).ok())
        .filter(|&id| id != 0)
}

/// The PCI address of an open VFIO device.
fn address(file: &File) -> Option<u32> {
    pci_address(&link_name(&sysfs_path(file).ok()?).ok()?)
}

/// Refuses a device without an IOMMU in front of it. Whether sysfs could tell.
fn behind_iommu(file: &File) -> Result<bool, SetupError> {
    class_path(file).map_or(Ok(false), |class| isolation::check_class(&class))
}

/// An open VFIO device in sysfs, as one of its class.
fn class_path(file: &File) -> io::Result<PathBuf> {
    let number = file.metadata()?.rdev();
    let (major, minor) = (rustix::fs::major(number), rustix::fs::minor(number));
    Ok(format!("/sys/dev/char/{major}:{minor}").into())
}

/// The device of an open VFIO device in sysfs.
fn sysfs_path(file: &File) -> io::Result<PathBuf> {
    Ok(class_path(file)?.join("device"))
}

/// The id of the one device in the context that no endpoint has; `None` when there are none or several. Where it is not
/// known that an IOMMU is in front of the device (`behind_iommu`), it could be one without: `None` when there is one.
fn only_device(
    context: &Context,
    taken: &dyn Fn(u32) -> bool,
    behind_iommu: bool,
) -> Result<Option<u32>, SetupError> {
    let without_iommu = Cell::new(false);
    let ask = |id| {
        let info = kernel::hw_info(context.fd(), id).map(drop);
        // The kernel's answer for a device without an IOMMU (7.3).
        if info.is_err_and(|error| error.errno == libc::EOPNOTSUPP) {
            without_iommu.set(true);
        }
        info
    };
    let found = objects(|id| (!taken(id)).then(|| ask(id)))?;
    Ok(match found {
        _ if without_iommu.get() && !behind_iommu => None,
        (Some(only), None) => Some(only),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn structures_without_pasid_are_those_of_older_kernels() {
        assert_eq!(argsz::<vfio_device_attach_iommufd_pt>(0), 12);
        assert_eq!(argsz::<vfio_device_detach_iommufd_pt>(0), 8);
        assert_eq!(
            argsz::<vfio_device_attach_iommufd_pt>(VFIO_DEVICE_ATTACH_PASID),
            16
        );
    }
}
