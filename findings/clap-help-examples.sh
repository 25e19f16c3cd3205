#!/bin/bash
# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
#
# Software:  crate clap 4.6.7 with feature wrap_help
# Behaviour: clap wraps the text behind the options (after_help) at the width of the terminal, or at 100 columns if the output is
#            no terminal. Examples of commands stand there. clap breaks a longer command without a backslash. If the line ends in
#            a backslash, the backslash moves to a line of its own. So a command that is pasted from the help runs by half. Lines
#            that the author broke below that width stay as they are.
# Seen:      A line of 101 characters ends in a backslash, and the help goes into a pipe: the backslash is alone on the next line.
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
clap = { version = "=4.6.7", features = ["wrap_help"] }
END

cat >src/main.rs <<'END'
use clap::Command;

const EXAMPLE: &str = "\
Example:
    program --first one --second two --third three --fourth four --fifth five --sixth six --seventh \
\\
        --last";

fn main() {
    Command::new("program").after_help(EXAMPLE).get_matches();
}
END

cat >expected <<'END'
Example:
    program --first one --second two --third three --fourth four --fifth five --sixth six --seventh
    \
        --last
END

cargo build --quiet
env -u COLUMNS target/debug/finding --help | sed -n '/^Example/,$p' >seen
if ! diff expected seen; then
    echo "CHANGED: clap leaves long lines of an example as they are, or breaks them elsewhere" >&2
    exit 1
fi
echo "As described: a long example is broken where a shell does not expect it"
