# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""What cargo builds, and where it is."""

import json
import os
import pathlib
import subprocess

from .cache import Missing, say

ROOT = pathlib.Path(__file__).resolve().parents[2]


class BuildFailed(Exception):
    """The project's own code does not build. Cargo has said why."""


def environment() -> dict[str, str]:
    return {**os.environ, "CARGO_TERM_COLOR": "never"}


def build(arguments: list[str], name: str, **variables: str) -> pathlib.Path:
    """Builds with `cargo ARGUMENTS` and environment variables: the executable of the target `name`."""
    say(f"building {name}")
    command = ["cargo", *arguments, "--message-format=json-render-diagnostics"]
    try:
        environ = environment() | variables
        result = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False, env=environ)
    except FileNotFoundError as error:
        raise Missing("cargo not found: install Rust") from error
    if result.returncode == 0:
        for line in result.stdout.splitlines():
            message = json.loads(line) if line.startswith("{") else {}
            if message.get("executable") and message["target"]["name"] == name:
                return pathlib.Path(message["executable"])
    raise BuildFailed(f"cargo {' '.join(arguments)}: no executable {name}, status {result.returncode}")


def backend() -> pathlib.Path:
    """The program under test, as users build it."""
    return build(["build", "--release", "--bin", "vhost-device-iommu"], "vhost-device-iommu")


def test_backend() -> pathlib.Path:
    """The program with endpoints on the kernel's mock bus."""
    return build(["build", "--features", "iommufd-test", "--bin", "vhost-device-iommu"], "vhost-device-iommu")


def odd_backend() -> pathlib.Path:
    """The program that sends what drivers have to ignore."""
    # Flags concern everything that is built: a directory of its own keeps the other builds.
    arguments = ["build", "--bin", "vhost-device-iommu", "--target-dir", str(ROOT / "target" / "odd-bits")]
    return build(arguments, "vhost-device-iommu", RUSTFLAGS="--cfg odd_bits -D warnings")


def test_binary(name: str) -> pathlib.Path:
    """A test binary that wants a kernel with mock devices."""
    return build(["test", "--features", "iommufd-test", "--test", name, "--no-run"], name)
