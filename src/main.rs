// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The program: see `vhost-device-iommu --help`.
#![forbid(unsafe_code)]

use std::env;
use std::error::Error;
use std::io::{self, Write};
use std::process::ExitCode;

use clap::error::ErrorKind;
use clap::{CommandFactory, Parser};
use vhost_device_iommu::cli::args::{Args, ArgsError, Command, asks_for_capabilities};
use vhost_device_iommu::cli::{check, completions, ctl, serve, viot};
use vhost_device_iommu::os::log_output::LogOutput;

/// Any failure: it is only printed.
type Failure = Box<dyn Error>;

/// `--print-capabilities`, as the conventions for back-end programs want it.
const CAPABILITIES: &str = r#"{
  "type": "iommu",
  "features": [
    "bypass-config",
    "page-request",
    "pasid",
    "probe"
  ]
}
"#;

fn main() -> ExitCode {
    if asks_for_capabilities(env::args_os().skip(1)) {
        return status(print_capabilities().map_err(Failure::from));
    }
    let args = Args::parse();
    status(match &args.command {
        Some(Command::Viot(args)) => viot::run(args).map_err(Failure::from),
        Some(Command::Ctl(args)) => ctl::run(args).map_err(Failure::from),
        Some(Command::Check(args)) => {
            args.check().unwrap_or_else(misused);
            match check::run(args) {
                Ok(true) => Ok(()),
                // The report has said it.
                Ok(false) => return ExitCode::FAILURE,
                Err(error) => Err(error.into()),
            }
        }
        Some(Command::Completions(args)) => completions::run(args.shell).map_err(Failure::from),
        None => {
            args.serve.check().unwrap_or_else(misused);
            serve::serve(&args.serve)
        }
    })
}

/// The exit status, after the error is printed.
fn status(result: Result<(), Failure>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // If that cannot be written, the exit status still says it.
            let line = format!("vhost-device-iommu: {error}\n");
            let _ = LogOutput::default().write_all(line.as_bytes());
            ExitCode::FAILURE
        }
    }
}

/// Ends the program as clap does.
fn misused(error: ArgsError) {
    Args::command()
        .error(ErrorKind::ArgumentConflict, error)
        .exit()
}

fn print_capabilities() -> io::Result<()> {
    let mut output = io::stdout().lock();
    output.write_all(CAPABILITIES.as_bytes())?;
    output.flush()
}
