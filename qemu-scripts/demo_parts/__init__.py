# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""The parts of qemu-scripts/demo. `common` is what they share, `timeline` the picture at the end.

`blocked`: only what the guest mapped is within reach. `iommufd`: a page request through the host's real iommufd.
`on_demand`: a Linux guest maps pages when a device asks for them. `shell`: a guest of the user's own.
"""
