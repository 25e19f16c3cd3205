// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `vhost-device-iommu completions`: what a shell needs to complete the command line.

use std::io::{self, Write};

use clap::CommandFactory;
use clap_complete::generate;

use crate::cli::args::{Args, Shell};

/// Prints the completions for a shell.
///
/// # Errors
/// They cannot be written.
pub fn run(shell: Shell) -> io::Result<()> {
    let generator = match shell {
        Shell::Bash => clap_complete::Shell::Bash,
        Shell::Zsh => clap_complete::Shell::Zsh,
        Shell::Fish => clap_complete::Shell::Fish,
    };
    let mut command = Args::command();
    let name = command.get_name().to_owned();
    // The library panics where it cannot write.
    let mut text = Vec::new();
    generate(generator, &mut command, name, &mut text);
    let mut output = io::stdout().lock();
    output.write_all(&text)?;
    output.flush()
}
