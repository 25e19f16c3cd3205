// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The program: see `vhost-device-iommu --help`.

fn main() {}
