// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! IOMMU groups: devices whose accesses the IOMMU cannot tell apart.
//!
//! The kernel moves all devices of a group that an iommufd has together (`iommufd_device_do_replace`), whichever of
//! them it is asked to move. It lets one be bound only when the others have no driver that does DMA, or are VFIO's.

use std::fs;
use std::io;
use std::path::Path;

use super::kernel::Dependent;
use crate::notation::pci_address;

/// A group, as one of its devices sees it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Group {
    pub id: u32,
    /// The others in it that are VFIO's, by address.
    pub mates: Vec<Mate>,
}

/// Another device of a group.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Mate {
    /// Its name in sysfs: a PCI address.
    pub name: String,
    /// It is bound to our iommufd.
    pub bound: bool,
}

impl Group {
    /// The group of a device in sysfs. `listed`: the devices that a reset of this one concerns,
    /// which need not be all of the group.
    pub fn of(device: &Path, listed: &[Dependent]) -> io::Result<Self> {
        let directory = device.join("iommu_group");
        let id = link_name(&directory)?
            .parse()
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
        let own = link_name(device)?;
        let mut mates = Vec::new();
        for entry in fs::read_dir(directory.join("devices"))? {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            let driver = link_name(&entry.path().join("driver"));
            if name != own && driver.is_ok_and(|driver| driver.contains("vfio")) {
                let bound = is_bound(&name, listed);
                mates.push(Mate { name, bound });
            }
        }
        mates.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(Self { id, mates })
    }
}

fn is_bound(name: &str, listed: &[Dependent]) -> bool {
    let address = pci_address(name);
    listed
        .iter()
        .any(|device| Some(device.address) == address && device.dev_id > 0)
}

/// The last part of what a symbolic link leads to.
pub(super) fn link_name(path: &Path) -> io::Result<String> {
    let target = fs::read_link(path)?;
    let name = target.file_name().ok_or(io::ErrorKind::InvalidData)?;
    Ok(name.to_string_lossy().into_owned())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    /// A directory like sysfs: group 7 with these devices and their drivers. Returns the link to the first.
    fn sysfs(root: &Path, devices: &[(&str, Option<&str>)]) -> std::path::PathBuf {
        let group = root.join("groups/7");
        fs::create_dir_all(group.join("devices")).unwrap();
        for (name, driver) in devices {
            let device = root.join("devices").join(name);
            fs::create_dir_all(&device).unwrap();
            symlink(&group, device.join("iommu_group")).unwrap();
            symlink(&device, group.join("devices").join(name)).unwrap();
            if let Some(driver) = driver {
                symlink(root.join(driver), device.join("driver")).unwrap();
            }
        }
        let link = root.join("device");
        symlink(root.join("devices").join(devices[0].0), &link).unwrap();
        link
    }

    fn dependent(device: u8, dev_id: i32) -> Dependent {
        Dependent {
            address: 2 << 8 | u32::from(device) << 3,
            dev_id,
        }
    }

    #[test]
    fn devices_of_vfio_in_the_group_are_found_and_who_has_them() {
        let root = tempfile::tempdir().unwrap();
        let device = sysfs(
            root.path(),
            &[
                ("0000:02:01.0", Some("vfio-pci")),
                ("0000:02:05.0", Some("mlx5_vfio_pci")),
                ("0000:02:04.0", Some("vfio-pci")),
                ("0000:02:03.0", Some("vfio-pci")),
                ("0000:02:02.0", None),
                ("0000:01:00.0", Some("pcieport")),
            ],
        );
        // The kernel's numbers: 0 if it is bound to no iommufd and its group is ours, -1 if the group is not ours.
        let listed = [
            dependent(1, 3),
            dependent(2, 0),
            dependent(3, 4),
            dependent(4, 0),
            dependent(6, -1),
        ];
        let group = Group::of(&device, &listed).unwrap();
        assert_eq!(group.id, 7);
        let mates = group.mates.iter().map(|mate| (&*mate.name, mate.bound));
        assert_eq!(
            mates.collect::<Vec<_>>(),
            [
                ("0000:02:03.0", true),
                ("0000:02:04.0", false),
                ("0000:02:05.0", false)
            ]
        );
    }

    #[test]
    fn a_device_alone_in_its_group_has_no_mates() {
        let root = tempfile::tempdir().unwrap();
        let device = sysfs(root.path(), &[("0000:02:01.0", Some("vfio-pci"))]);
        let group = Group::of(&device, &[dependent(1, 3)]).unwrap();
        assert!(group.mates.is_empty());
        assert!(Group::of(root.path(), &[]).is_err());
    }
}
