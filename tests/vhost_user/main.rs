// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The device through vhost-user, over the software host.
#![expect(
    non_snake_case,
    reason = "the ids of normative points end the names of their tests"
)]

#[path = "../common/mod.rs"]
mod common;

mod connections;
mod descriptors;
mod events;
mod held_tables;
mod lifecycle;
mod misuse;
mod program;
mod reattach;
mod requests;
mod rings;

use common::guest::EVENT_IDX;
use common::{GuestOptions, Layout};
use vhost_device_iommu::spec::Status;

const OK: u8 = Status::Ok as u8;
const INVAL: u8 = Status::Inval as u8;
const NOENT: u8 = Status::NoEnt as u8;

/// Descriptors in the queue's table and in tables of their own, with and without EVENT_IDX.
fn every_layout() -> Vec<GuestOptions> {
    let mut all = Vec::new();
    for layout in [Layout::Direct, Layout::Indirect] {
        for features in [u64::MAX, !EVENT_IDX] {
            all.push(GuestOptions {
                features,
                layout,
                ..GuestOptions::default()
            });
        }
    }
    all
}
