# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""The lab: QEMU, kernels and guests for the tests, the demo and the benchmarks.

| module | what |
|---|---|
| `cache` | where fetched and built things live, one entry per content, one builder at a time |
| `debian` | packages of a newer Debian, unpacked into the cache: nothing is installed on the machine |
| `qemu` | a QEMU with the generic vhost-user device |
| `kernel` | the lab kernel, built from source, and Debian's packaged kernel |
| `boot` | the machine's own files as a guest of the lab kernel, to run one program |
| `initramfs` | small guests: an init and modules |
| `cargo`, `programs`, `selftest` | what cargo builds; the guests' programs |
| `vm` | the back-end, QEMU and the program in the guest, as processes to talk to |
| `suites`, `fuzzing` | the test suites, as jobs |
| `parts` | what they stand on, as jobs: kernels, QEMU, builds |
| `lanes`, `processes` | jobs side by side; processes with deadlines |
| `classes`, `worker` | a class of tests in a process of its own |
| `rotation` | what a default run leaves to others |
| `tally` | counts of tests, and what is shown of them |
"""
