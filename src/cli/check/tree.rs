// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The files in which the kernel describes the machine, below `/` or, in tests, below a directory.

use std::fs;
use std::path::{Path, PathBuf};

use crate::host::iommufd;

/// Where the files are.
pub(super) struct Tree {
    root: PathBuf,
}

impl Default for Tree {
    fn default() -> Self {
        Self {
            root: PathBuf::from("/"),
        }
    }
}

impl Tree {
    fn path(&self, path: impl AsRef<Path>) -> PathBuf {
        self.root.join(path)
    }

    /// A file's text without the space around it; `None` when it cannot be read.
    pub fn text(&self, path: impl AsRef<Path>) -> Option<String> {
        let text = fs::read_to_string(self.path(path)).ok()?;
        Some(text.trim().to_owned())
    }

    pub fn bytes(&self, path: impl AsRef<Path>) -> Option<Vec<u8>> {
        fs::read(self.path(path)).ok()
    }

    pub fn exists(&self, path: impl AsRef<Path>) -> bool {
        self.path(path).exists()
    }

    /// The names in a directory, sorted; none when there is no such directory.
    pub fn names(&self, path: impl AsRef<Path>) -> Vec<String> {
        let entries = fs::read_dir(self.path(path)).into_iter().flatten();
        let mut names: Vec<_> = entries
            .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
            .collect();
        names.sort();
        names
    }

    /// Whether an IOMMU group, by its number, is one that VFIO has made for a device without an IOMMU.
    pub fn is_without_iommu(&self, group: &str) -> bool {
        let name = self.text(format!("sys/kernel/iommu_groups/{group}/name"));
        name.is_some_and(|name| iommufd::is_group_without_iommu(&name))
    }

    /// The last part of what a symbolic link leads to.
    pub fn link_name(&self, path: impl AsRef<Path>) -> Option<String> {
        let target = fs::read_link(self.path(path)).ok()?;
        Some(target.file_name()?.to_str()?.to_owned())
    }
}

/// A tree for tests.
#[cfg(test)]
pub(super) struct TestTree {
    directory: tempfile::TempDir,
    pub tree: Tree,
}

#[cfg(test)]
impl TestTree {
    /// With these files: path and contents.
    pub fn new(files: &[(&str, &str)]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let tree = Tree {
            root: directory.path().to_owned(),
        };
        let made = Self { directory, tree };
        for (path, contents) in files {
            made.file(path, contents.as_bytes());
        }
        made
    }

    pub fn file(&self, path: &str, contents: &[u8]) {
        let path = self.directory.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, contents).unwrap();
    }

    pub fn link(&self, path: &str, target: &str) {
        let path = self.directory.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::os::unix::fs::symlink(self.directory.path().join(target), path).unwrap();
    }
}
