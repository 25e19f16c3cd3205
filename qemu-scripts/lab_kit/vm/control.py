# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""The back-end's control socket."""

import json
import pathlib
import socket
from typing import Any

from .lines import LineSocket


class ControlError(Exception):
    """The back-end answered with an error."""

    def __init__(self, error: dict[str, str]):
        super().__init__(f"{error['class']}: {error['desc']}")
        self.error_class = error["class"]


class Control:
    """A connection to the control socket."""

    def __init__(self, path: pathlib.Path, timeout: float = 30.0):
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.connect(str(path))
        self._lines = LineSocket(sock, "control socket")
        self._timeout = timeout
        self._before: dict[str, int] = {}

    def execute(self, command: str, descriptors: tuple[int, ...] = (), **arguments: Any) -> Any:
        self._lines.send(json.dumps({"execute": command, "arguments": arguments}), descriptors)
        answer = json.loads(self._lines.receive(self._timeout))
        if "error" in answer:
            raise ControlError(answer["error"])
        return answer["return"]

    def dma_read(self, endpoint: str, iova: int, length: int) -> bytes:
        return bytes.fromhex(self.execute("dma-read", endpoint=endpoint, iova=iova, length=length)["data"])

    def dma_write(self, endpoint: str, iova: int, data: bytes) -> None:
        self.execute("dma-write", endpoint=endpoint, iova=iova, data=data.hex())

    def status(self) -> dict[str, Any]:
        return self.execute("status")

    def total(self) -> dict[str, int]:
        """The counters since the start of the back-end."""
        return self.execute("counters")

    def count_from_here(self) -> None:
        """Has `counters` begin with zeroes."""
        self._before = self.total()

    def counters(self) -> dict[str, int]:
        """The counters since `count_from_here`."""
        return {name: value - self._before.get(name, 0) for name, value in self.total().items()}

    def endpoint(self, function: str) -> dict[str, Any]:
        """The status of one endpoint, named by its PCI address on bus 0."""
        number = endpoint_id(function)
        return next(endpoint for endpoint in self.status()["endpoints"] if endpoint["id"] == number)

    def domain(self, function: str) -> dict[str, Any]:
        """The status of the domain that an endpoint is attached to."""
        wanted = self.endpoint(function)["domain"]
        return next(domain for domain in self.status()["domains"] if domain["id"] == wanted)

    def close(self) -> None:
        self._lines.close()


def endpoint_id(function: str) -> int:
    """`00:05.0` is 0x28: bus, device and function."""
    bus, rest = function.split(":")
    device, number = rest.split(".")
    return int(bus, 16) << 8 | int(device, 16) << 3 | int(number)
