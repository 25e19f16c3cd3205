// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A vhost-user back-end for the virtio IOMMU device (device ID 23) with page requests.
//!
//! ```text
//! guest driver ── virtqueues ── transport ── device ── host ── iommufd / software IOMMU ── endpoint
//!                                               ▲                       │
//!                                               └──── page requests ────┘
//! ```
//!
//! The rooms of the house:
//!
//! * [`spec`]: wire types only - config space, requests, probe properties, events.
//! * [`device`]: what the specification says the device does - endpoints, domains, mappings, request
//!   dispatch, and the book of page requests. Pure: no file descriptor, no thread, no clock.
//! * [`host`]: the [`host::Host`] contract, and the two hosts that keep it: `iommufd` and `soft`.
//! * [`transport`]: vhost-user - one daemon per connection, virtqueues, event delivery, guest memory.
//! * [`soft_endpoint`]: PCI functions in software, over vfio-user, whose DMA goes through `soft`.
//! * [`control`]: the control socket.
//! * [`qmp`]: what QEMU tells besides.
//! * [`check`]: what this machine can do.
//! * [`args`], [`viot`], [`listen`], [`seccomp`], [`sys`]: the command line, the ACPI table, and what the start of the
//!   process needs.
//!
//! `docs/architecture.md` has the locks, and the reasons. `unsafe` code is confined to the modules that talk to the
//! kernel: `host/iommufd/`, `sys`, `relay`.
#![deny(unsafe_code)]
#![cfg_attr(
    test,
    expect(
        non_snake_case,
        reason = "the ids of normative points end the names of their tests"
    )
)]

pub mod args;
pub mod check;
pub mod control;
pub mod device;
#[cfg(any(fuzzing, test))]
mod fuzz_input;
pub mod host;
pub mod listen;
mod poller;
pub mod qmp;
mod relay;
pub mod seccomp;
pub mod soft_endpoint;
pub mod spec;
pub mod sys;
pub mod transport;
pub mod viot;
