// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a person types: the options, and the five things that the program does.
//!
//! `args` (the command line), `serve` (without a subcommand), `viot` (the ACPI table), `ctl` (the client of the control
//! socket; `indent`: long answers; `picture`: an address space; `top`: what happens now), `check` (what this machine can do), `completions` (for shells).
#![forbid(unsafe_code)]

pub mod args;
pub mod check;
pub mod completions;
pub mod ctl;
mod indent;
mod picture;
pub mod serve;
mod top;
pub mod viot;
