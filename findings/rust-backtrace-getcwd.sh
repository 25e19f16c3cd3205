#!/bin/bash
# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
#
# Software:  Rust's standard library (1.95.0; the version that runs is printed), with crate seccompiler 0.5.0
# Behaviour: If RUST_BACKTRACE=1 is set, a panic asks the kernel for the working directory, and prints paths of source files
#            relative to it. Nothing else in a program may need getcwd, so a system call filter that was made from watching the
#            program does not allow it. Such a filter takes effect in the first panic, where the message is needed most. The
#            filter should allow getcwd, or refuse it with an error.
# Seen:      Without a filter the frame of main() is at ./src/main.rs. With a filter that allows everything else and answers
#            getcwd with EPERM, the frame has the absolute path.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
mkdir src

cat >Cargo.toml <<'END'
[package]
name = "finding"
version = "0.0.0"
edition = "2021"

[dependencies]
libc = "=0.2.191"
seccompiler = "=0.5.0"
END

cat >src/main.rs <<'END'
use seccompiler::{apply_filter, BpfProgram, SeccompAction, SeccompFilter};

fn main() {
    if std::env::args().len() > 1 {
        let rules = [(libc::SYS_getcwd, vec![])].into();
        let refuse = SeccompAction::Errno(libc::EPERM as u32);
        let target = std::env::consts::ARCH.try_into().unwrap();
        let filter = SeccompFilter::new(rules, SeccompAction::Allow, refuse, target).unwrap();
        apply_filter(&BpfProgram::try_from(filter).unwrap()).unwrap();
    }
    panic!("as expected");
}
END

cat >expected <<'END'
no filter: at ./src/main.rs
getcwd refused: at DIRECTORY/src/main.rs
END

cargo build --quiet
rustc --version
frame() {
    RUST_BACKTRACE=1 target/debug/finding "$@" 2>&1 | grep -o 'at .*src/main.rs' | tail -n 1 | sed "s|$PWD|DIRECTORY|" || true
}
{ echo "no filter: $(frame)"; echo "getcwd refused: $(frame filtered)"; } >seen
if ! diff expected seen; then
    echo "CHANGED: a backtrace does not depend on getcwd" >&2
    exit 1
fi
echo "As described: a panic with a backtrace calls getcwd"
