# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""The compiler that makes kernels and programs for Arm on this machine."""

PREFIX = "aarch64-linux-gnu-"
COMPILER = f"{PREFIX}gcc"

# Commands or files, and the packages that have them.
TOOLS = {COMPILER: "gcc-aarch64-linux-gnu"}
PROGRAM_TOOLS = {**TOOLS, "/usr/aarch64-linux-gnu/lib/libc.a": "libc6-dev-arm64-cross"}
