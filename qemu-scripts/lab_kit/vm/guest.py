# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""The program in the guest, command by command: see guest/README.md."""

import os
import socket
import time
from collections.abc import Callable

from .lines import LineSocket
from .modules import Modules

# Emulation on a busy machine is slow; nothing that works takes this long. Emulation in emulation is slower.
PATIENCE = float(os.environ.get("LAB_PATIENCE", "1"))
TIMEOUT = 60.0 * PATIENCE
BOOT_TIMEOUT = max(420.0, 180.0 * PATIENCE)
# For what the program in the guest waits for, by the guest's clock.
SECONDS = 45
# Mappings that were removed wait in a flush queue for 10 ms.
FLUSHED = 0.1


class GuestError(Exception):
    """The guest's program answered `= error`."""


def fields(line: str) -> dict[str, str]:
    """The `name=value` words of a line."""
    return dict(word.split("=", 1) for word in line.split())


def pattern(seed: int, length: int) -> bytes:
    """What the guest fills a buffer with."""
    return bytes((seed + 31 * i + 17 * (i >> 8)) & 0xFF for i in range(length))


class Guest:
    """A running guest."""

    def __init__(self, sock: socket.socket, modules: Modules):
        self._lines = LineSocket(sock, "guest")
        self._modules = modules

    def wait_ready(self, timeout: float = BOOT_TIMEOUT) -> None:
        """Waits until the program has started; again after each reset."""
        line = self._lines.receive(timeout)
        if line != "= ready":
            raise GuestError(f"unexpected line {line!r}")

    def reboot(self) -> None:
        """Reboots, and waits until the program has started again.

        Flush queues are empty by then, as stock Linux 7.2 wants it: patch 0021 of guest/linux has the reason.
        """
        time.sleep(FLUSHED)
        self.run("reboot")
        self.wait_ready()

    def ask(self, command: str, timeout: float = TIMEOUT) -> tuple[str, list[str]]:
        """Runs a command: the text of its answer, and its lines of data."""
        data: list[str] = []
        return self.follow(command, data.append, timeout), data

    def follow(self, command: str, show: Callable[[str], object], timeout: float = TIMEOUT) -> str:
        """Runs a command, and shows its lines of data as they come: the text of its answer."""
        self.begin(command)
        return self.end(command, show, timeout)

    def begin(self, command: str) -> None:
        """Starts a command that ends with something else than itself; `end` is to follow."""
        self._lines.send(command)

    def end(self, command: str, show: Callable[[str], object] = lambda _: None, timeout: float = TIMEOUT) -> str:
        """Waits for the end of a command that was started: the text of its answer."""
        while (line := self._lines.receive(timeout)).startswith("| "):
            show(line[2:])
        if line.startswith("= ok"):
            return line[5:].strip()
        raise GuestError(f"{command}: {line.removeprefix('= error ')}")

    def run(self, command: str, timeout: float = TIMEOUT) -> str:
        return self.ask(command, timeout)[0]

    def lines(self, command: str) -> list[str]:
        return self.ask(command)[1]

    def load(self, module: str, parameters: str = "") -> None:
        """Loads a module and what it needs; nothing happens when the kernel has it built in."""
        for name in (order := self._modules.order(module)):
            self.run(f"insmod {name} {parameters if name == order[-1] else ''}")

    def group_types(self) -> dict[str, str]:
        """The type of the IOMMU group of every PCI function that has one."""
        types = {}
        for line in self.lines("groups"):
            _, kind, devices = line.split()
            for device in devices.removeprefix("devices=").split(","):
                types[device.removeprefix("0000:")] = kind.removeprefix("type=")
        return types

    def reserved(self, function: str) -> set[tuple[int, int, str]]:
        """The reserved regions of a function: first and last address, type."""
        regions = (line.split() for line in self.lines(f"reserved {function}"))
        return {(int(start, 16), int(last, 16), kind) for start, last, kind in regions}

    def find_devices(self) -> None:
        """Has the kernel look for devices. That waits until it is done with those that are coming."""
        self.run("write /sys/bus/pci/rescan 1")

    def bind_vfio(self, function: str) -> None:
        self.load("vfio_iommu_type1", "allow_unsafe_interrupts=1")
        self.load("vfio_pci")
        self.run(f"bind {function} vfio-pci")

    def open_vfio(self, name: str, function: str) -> None:
        """Binds a function to vfio-pci and opens it."""
        self.bind_vfio(function)
        self.run(f"open {name} {function}")

    def map(self, space: str, iova: int, length: int, access: str, seed: int) -> None:
        self.run(f"map {space} {iova:#x} {length:#x} {access} {seed}")

    def only_containers(self) -> None:
        """From here on VFIO is used through containers. Those map memory of devices, and what may become memory, which
        iommufd does not."""
        self.run("remove /dev/iommu")
        self.run("write /sys/module/vfio_iommu_type1/parameters/allow_unsafe_interrupts 1")

    def map_physical(self, space: str, iova: int, length: int, access: str, address: int) -> None:
        self.run(f"map-physical {space} {iova:#x} {length:#x} {access} {address:#x}")

    def unmap(self, space: str, iova: int, length: int) -> None:
        self.run(f"unmap {space} {iova:#x} {length:#x}")

    def peek(self, space: str, iova: int, length: int) -> bytes:
        return bytes.fromhex(self.run(f"peek {space} {iova:#x} {length}"))

    def mark_log(self) -> None:
        self.run("log-mark")

    def wait_log(self, text: str, seconds: int = SECONDS) -> str:
        """The first kernel log line after the mark that contains `text`."""
        return self.run(f"log-wait {seconds} {text}", timeout=seconds + TIMEOUT)

    def benchmark(self, seconds: int, threads: int = 1, pages: int = 1) -> dict[str, int]:
        answer = self.run(f"bench {seconds} {threads} {pages}", timeout=seconds + TIMEOUT)
        return {key: int(value) for key, value in (word.split("=") for word in answer.split())}

    def close(self) -> None:
        self._lines.close()
