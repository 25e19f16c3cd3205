# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""What the functional tests stand on: the back-end, QEMU, and the program in the guest.

`lab` knows where things are, `modules` finds what the guest loads, `backend` and `machine` run the two
processes, `guest` and `control` talk to them, `testcase` puts them together, `engine`
adds a software function.
"""
