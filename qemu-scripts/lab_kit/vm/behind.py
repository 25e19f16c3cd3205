# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""A back-end, and a guest behind it."""

import contextlib
import pathlib
from collections.abc import Iterator
from typing import Any

from . import lab
from .backend import Backend, write_viot
from .machine import IOMMU, Machine, MachineConfig


@contextlib.contextmanager
def running(
    directory: pathlib.Path,
    kernel: lab.Kernel,
    endpoints: list[str],
    *options: str,
    functions: dict[str, pathlib.Path] | None = None,
    **more: Any,
) -> Iterator[tuple[Backend, Machine]]:
    """A back-end with endpoints, and a guest behind it that starts; both end with the context. `functions`: software
    functions, and their sockets. `options` are for the back-end; `more` goes to the machine's configuration."""
    functions = functions or {}
    all_endpoints = [*endpoints, *(f"{function},soft={path}" for function, path in functions.items())]
    with contextlib.closing(Backend(lab.backend(), directory, all_endpoints, list(options))) as backend:
        viot = directory / "viot.bin"
        write_viot(lab.backend(), viot, IOMMU, [*endpoints, *functions])
        config = MachineConfig(kernel=kernel, vhost_socket=backend.socket, viot=viot, functions=functions, **more)
        with contextlib.closing(Machine(config, directory)) as machine:
            yield backend, machine
