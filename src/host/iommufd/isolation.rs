// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Whether an IOMMU is in front of a device.
//!
//! With CONFIG_VFIO_NOIOMMU, Linux 7.3 gives devices without one to iommufd too: it makes an IOMMU group for them, binds
//! them, and attaches them to page tables that nothing reads. Such a device reaches all memory of the machine, so it is
//! told by name and by sysfs, before it is opened or bound.

use std::fs;
use std::path::Path;

use super::group::link_name;
use super::startup::SetupError;

/// How the kernel begins the names of such devices, as files and in the class `vfio-dev`.
const PREFIX: &str = "noiommu-";

/// Name of the groups that VFIO makes for them (`vfio_noiommu_group_alloc`).
const GROUP: &str = "vfio-noiommu";

/// Whether a VFIO device of this name (`vfio0`) is one without an IOMMU.
pub fn is_without_iommu(name: &str) -> bool {
    name.starts_with(PREFIX)
}

/// Whether an IOMMU group of this name has no IOMMU. Few groups have a name.
pub fn is_group_without_iommu(name: &str) -> bool {
    name == GROUP
}

/// Refuses a device by its path, `/dev/vfio/devices/NAME`, before it is opened.
pub(super) fn check_path(path: &Path) -> Result<(), SetupError> {
    let real = fs::canonicalize(path);
    let real = real.as_deref().unwrap_or(path);
    match [path, real].into_iter().any(has_name_without_iommu) {
        true => Err(SetupError::NoIommu(path.display().to_string())),
        false => Ok(()),
    }
}

/// Refuses a device by its directory in the class `vfio-dev`. Whether sysfs told.
pub(super) fn check_class(class: &Path) -> Result<bool, SetupError> {
    let device = class.join("device");
    let Ok(address) = link_name(&device) else {
        return Ok(false);
    };
    let entry = fs::canonicalize(class);
    let named = entry.is_ok_and(|entry| has_name_without_iommu(&entry));
    let group = fs::read_to_string(device.join("iommu_group/name"));
    let grouped = group.is_ok_and(|name| is_group_without_iommu(name.trim()));
    // The kernel links every device that an IOMMU translates to it.
    let linked = fs::read_link(device.join("iommu")).is_ok();
    match named || grouped || !linked {
        true => Err(SetupError::NoIommu(address)),
        false => Ok(true),
    }
}

fn has_name_without_iommu(path: &Path) -> bool {
    let name = path.file_name().and_then(|name| name.to_str());
    name.is_some_and(is_without_iommu)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;
    use std::path::PathBuf;

    use super::*;

    const ADDRESS: &str = "0000:02:01.0";

    /// A directory like sysfs with one VFIO device. Returns its directory in the class, by a link as in /sys/dev/char.
    fn sysfs(root: &Path, name: &str, group: Option<&str>, iommu: bool) -> PathBuf {
        let device = root.join("devices").join(ADDRESS);
        let class = device.join("vfio-dev").join(name);
        fs::create_dir_all(&class).unwrap();
        symlink(&device, class.join("device")).unwrap();
        let directory = root.join("groups/7");
        fs::create_dir_all(&directory).unwrap();
        symlink(&directory, device.join("iommu_group")).unwrap();
        if let Some(group) = group {
            fs::write(directory.join("name"), format!("{group}\n")).unwrap();
        }
        if iommu {
            symlink(root.join("iommu/dmar0"), device.join("iommu")).unwrap();
        }
        let link = root.join("511:0");
        symlink(&class, &link).unwrap();
        link
    }

    #[test]
    fn a_device_without_an_iommu_is_told_by_each_sign_of_it() {
        for (name, group, iommu, behind) in [
            ("vfio0", None, true, true),
            ("vfio0", Some("other"), true, true),
            // As Linux 7.3 has it.
            ("noiommu-vfio0", Some("vfio-noiommu"), false, false),
            ("noiommu-vfio0", None, true, false),
            ("vfio0", Some("vfio-noiommu"), true, false),
            ("vfio0", None, false, false),
        ] {
            let root = tempfile::tempdir().unwrap();
            let class = sysfs(root.path(), name, group, iommu);
            match check_class(&class) {
                Ok(told) => assert!(told && behind, "{name} {group:?} {iommu}"),
                Err(error) => {
                    assert!(!behind, "{name} {group:?} {iommu}: {error}");
                    assert!(error.to_string().starts_with(ADDRESS), "{error}");
                }
            }
        }
    }

    #[test]
    fn without_sysfs_nothing_is_told() {
        let root = tempfile::tempdir().unwrap();
        assert!(!check_class(&root.path().join("511:0")).unwrap());
    }

    #[test]
    fn a_file_is_refused_by_its_name_and_by_that_of_what_it_leads_to() {
        let root = tempfile::tempdir().unwrap();
        let file = |name: &str| root.path().join(name);
        fs::write(file("noiommu-vfio0"), "").unwrap();
        symlink(file("noiommu-vfio0"), file("link")).unwrap();
        fs::write(file("vfio0"), "").unwrap();
        for (name, refused) in [
            ("noiommu-vfio0", true),
            ("link", true),
            // Whether or not it is there.
            ("noiommu-vfio1", true),
            ("vfio0", false),
            ("vfio1", false),
        ] {
            let result = check_path(&file(name));
            assert_eq!(result.is_err(), refused, "{name}: {result:?}");
        }
    }
}
