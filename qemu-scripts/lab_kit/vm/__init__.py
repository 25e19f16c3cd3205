# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""Virtual machines behind the back-end: what the tests, the demo and the benchmarks start.

`lab` knows where things are, `modules` finds what the guest loads, `backend` and `machine` run the two processes (`arm`
on another architecture), `guest` and `control` talk to them, `disk` and `requests` read what passed.
"""
