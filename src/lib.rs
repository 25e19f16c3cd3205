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
//! * [`device`]: what the specification says the device does - endpoints, domains, request dispatch, and the book of page
//!   requests. Pure: no file descriptor, no thread, no clock.
//! * [`host`]: the [`host::Host`] contract with the mapping table, and the two hosts that keep it: `iommufd` and `soft`.
//! * [`transport`]: vhost-user - one daemon per connection, virtqueues, event delivery, guest memory.
//! * [`soft_endpoint`]: PCI functions in software, over vfio-user, whose DMA goes through `soft`.
//! * [`endpoints`]: the life of an endpoint - its description, its host, its name in QEMU.
//! * [`control`]: the control socket. [`qmp`]: what QEMU tells besides.
//! * [`cli`]: what a person types - options, `serve`, `viot`, `ctl`, `check`.
//! * [`os`]: the process and its kernel - descriptors, signals, sockets, the system call filter.
//! * [`notation`]: how numbers, bytes and PCI addresses are written. `fuzzing`: what fuzz targets run.
//!
//! `docs/architecture.md` has the locks, and the reasons. `unsafe` code is confined to the modules that talk to the
//! kernel: `host/iommufd/`, `os/inherited`.
#![deny(unsafe_code)]
#![cfg_attr(
    test,
    expect(
        non_snake_case,
        reason = "the ids of normative points end the names of their tests"
    )
)]

pub mod cli;
pub mod control;
pub mod device;
pub mod endpoints;
#[cfg(any(fuzzing, test))]
pub mod fuzzing;
pub mod host;
pub mod notation;
pub mod os;
pub mod qmp;
pub mod soft_endpoint;
pub mod spec;
pub mod transport;
