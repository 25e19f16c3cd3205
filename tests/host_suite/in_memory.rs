// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A copy of the program and of the libraries that it uses, in memory.
//!
//! The lab kernel's file system (9p) gives its connection up when an allocation fails there. So a program whose
//! allocations are to fail must not use it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use crate::common;

/// A file system in memory, for as long as the lab kernel runs.
const MEMORY: &str = "/dev/shm/program";

/// As the function of the same name in `common`, for the copy.
pub fn program_in(directory: &Path) -> Command {
    static LOADER: OnceLock<PathBuf> = OnceLock::new();
    let original = common::program_in(directory);
    let loader = LOADER.get_or_init(|| copy(Path::new(original.get_program())));
    let mut command = Command::new(loader);
    command
        .args(["--library-path", MEMORY])
        .arg(in_memory(Path::new(original.get_program())))
        .args(original.get_args())
        .current_dir(MEMORY);
    command
}

/// Copies everything, and returns the program loader.
fn copy(program: &Path) -> PathBuf {
    fs::create_dir_all(MEMORY).unwrap();
    // This process uses the same libraries.
    let maps = fs::read_to_string("/proc/self/maps").unwrap();
    let libraries = maps
        .lines()
        .filter_map(|line| line.split_whitespace().nth(5))
        .map(Path::new)
        .filter(|path| path.to_string_lossy().contains(".so"));
    let mut loader = None;
    for file in libraries.chain([program]) {
        let copy = in_memory(file);
        if !copy.exists() {
            fs::copy(file, &copy).unwrap();
        }
        if file
            .file_name()
            .unwrap()
            .to_string_lossy()
            .starts_with("ld-linux")
        {
            loader = Some(copy);
        }
    }
    loader.expect("a program loader")
}

fn in_memory(file: &Path) -> PathBuf {
    Path::new(MEMORY).join(file.file_name().unwrap())
}
