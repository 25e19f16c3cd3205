# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""A software function works on the memory of processes in the guest, with their page tables.

The stock driver uio_pci_sva binds a function to the process that opens it. See guest/README.md for the commands, and
docs/fault-engine.md for the engines.
"""

import unittest
from typing import Any

from lab_kit.vm import lab
from lab_kit.vm.backend import Backend
from lab_kit.vm.control import Control
from lab_kit.vm.guest import SECONDS, TIMEOUT, Guest, fields
from lab_kit.vm.machine import ENDPOINTS, Machine

from .engine import LIMIT, engine_register
from .testcase import FunctionalTest

FUNCTIONS = ("00:07.0", "00:08.0")
PAGE = 0x1000
LARGE = 0x20_0000

# Where the tests have their memory: descriptors, and what is copied from and to. The program has nothing there. An engine
# keeps one translation for each number that the lowest 9 bits of a page's number can be: here are no two for one.
CHAINS = 0x10_001F_0000
SOURCE = 0x20_0004_0000
TARGET = 0x30_0008_0000
OTHER = 0x40_0000_0000

# Where to a part of memory goes that nobody needs, and from where it is written as a file.
SWAP, DISK = "ram0", "ram1"
DISK_KIB = 16 << 10


# What a command answers whose process is killed by it.
KILLED = "signal 9"


class Killed(Exception):
    """A process was killed in the midst of a command."""


class Process:
    """A process of the guest. Its first function is called "one"."""

    def __init__(self, test: unittest.TestCase, guest: Guest, prefix: str = ""):
        self._test = test
        self._prefix = prefix
        self._is_gone = False
        self.guest = guest
        self.pasid = 0

    def run(self, command: str, timeout: float = TIMEOUT) -> str:
        answer = self.guest.run(f"{self._prefix}{command}", timeout)
        if self._prefix and answer == KILLED:
            self._prefix = ""
            self._is_gone = True
            raise Killed(command)
        return answer

    def fork(self, name: str) -> "Process":
        """A copy of the process, which ends with the test."""
        self.run(f"fork {name}")
        copy = Process(self._test, self.guest, f"{self._prefix}in {name} ")
        copy.pasid = self.pasid
        self._test.addCleanup(copy.kill)
        return copy

    def kill(self) -> None:
        """Ends a copy, if that has not been done."""
        if not self._is_gone:
            with self._test.assertRaises(Killed):
                self.run("kill")

    def share(self, function: str = FUNCTIONS[0], name: str = "one") -> int:
        """Has a function work on the memory of the process: the PASID."""
        self.pasid = int(fields(self.run(f"share {name} {function}"))["pasid"])
        return self.pasid

    def memory(self, address: int, length: int, seed: int | None = None, kind: str = "private") -> None:
        """New memory; with a seed it is there, and filled."""
        self.run(f"memory {address:#x} {length:#x} {kind}")
        if seed is not None:
            self.fill(address, length, seed)

    def fill(self, address: int, length: int, seed: int) -> None:
        self.run(f"fill {address:#x} {length:#x} {seed}")

    def verify(self, address: int, length: int, seed: int) -> None:
        """Compares memory with a pattern, as the processor sees it. Raises `GuestError` if it is another."""
        self.run(f"verify process {address:#x} {length:#x} {seed}")

    def verify_zeros(self, address: int, length: int) -> None:
        self.run(f"zeros {address:#x} {length:#x}")

    def drop(self, address: int, length: int) -> None:
        self.run(f"drop {address:#x} {length:#x}")

    def protect(self, address: int, length: int, access: str) -> None:
        self.run(f"protect {address:#x} {length:#x} {access}")

    def advise(self, address: int, length: int, advice: str) -> None:
        self.run(f"advise {address:#x} {length:#x} {advice}")

    def may_go(self, address: int, length: int, how: str) -> None:
        """Has the kernel do without memory as if it were short of it (`pageout`), or lets it (`free`)."""
        # It cannot while a page waits in a list of the processor that has made it. This empties those lists.
        self.run("write /proc/sys/vm/drop_caches 1")
        self.advise(address, length, how)

    def pages(self, address: int, length: int) -> dict[str, int]:
        """How many pages are present and swapped; and how many KiB of the mapping are in large ones."""
        return {name: int(value) for name, value in fields(self.run(f"pages {address:#x} {length:#x}")).items()}

    def store(self, at: int, operation: str, flags: str = "page-requests", pasid: int | None = None, **values: int) -> None:
        """Writes a descriptor."""
        values["pasid"] = self.pasid if pasid is None else pasid
        words = " ".join(f"{name}={value:#x}" for name, value in values.items())
        self.run(f"descriptor process {at:#x} {operation} {words} flags={','.join(filter(None, ('pasid', flags)))}")

    def begin(self, operation: str, engine: int = 0, device: str = "one", **values: Any) -> None:
        """Starts an engine on a chain of one descriptor, at a place of its own."""
        at = CHAINS + 64 * engine
        self.store(at, operation, **values)
        self.run(f"start {device} {engine} {at:#x} {self.pasid} page-requests")

    def end(self, engine: int = 0, device: str = "one") -> dict[str, str]:
        """Waits for the end of such a chain: the completion of its descriptor."""
        outcome = fields(self.run(f"wait {device} {engine} {SECONDS}"))["outcome"]
        completion = fields(self.run(f"completion process {CHAINS + 64 * engine:#x}"))
        self._test.assertEqual(completion["status"], outcome)
        return completion

    def engine(self, operation: str, engine: int = 0, device: str = "one", **values: Any) -> dict[str, str]:
        self.begin(operation, engine, device, **values)
        return self.end(engine, device)

    def copy(self, source: int, target: int, length: int, **more: Any) -> dict[str, str]:
        """Has an engine copy memory, with page requests if `flags` do not say otherwise."""
        return self.engine("copy", address=source, other=target, length=length, **more)

    def copied(self, source: int, target: int, length: int, **more: Any) -> int:
        """Has an engine copy memory: the groups of page requests that it took."""
        done = self.copy(source, target, length, **more)
        self._test.assertEqual((done["status"], int(done["done"])), ("done", length))
        return int(done["groups"])

    def copy_in_circles(self, source: int, target: int, length: int, engine: int = 0) -> None:
        """Starts a chain that ends with an error only."""
        at = CHAINS + 64 * engine
        self.run(f"register one {engine_register(engine, LIMIT):#x} 0")
        self.begin("copy", engine, address=source, other=target, length=length, next=at)

    def register(self, offset: int, name: str = "one") -> int:
        return int(self.run(f"register {name} {offset:#x}"), 16)


class ProcessTest(FunctionalTest):
    """A guest with two software functions, both bound to uio_pci_sva, with swap, and with a disk."""

    kernel = staticmethod(lab.patched_kernel)
    shares_machines = True
    # The tests look at what becomes of accesses, and not at what the guest's kernel says of faults.
    waits_for_faults = False
    # Of page tables.
    levels = 5
    memory = "512M"
    swaps = True

    def start_functions(self, *options: str, **more: Any) -> tuple[Guest, Control]:
        """A back-end, and a machine."""

        def make() -> tuple[Backend, Machine]:
            sockets = {function: self.directory / f"function{number}.sock" for number, function in enumerate(FUNCTIONS)}
            endpoints = (*ENDPOINTS, *(f"{function},soft={path}" for function, path in sockets.items()))
            backend = self.start_backend("--page-response-timeout", "0", *options, endpoints=endpoints)
            machine = self.start_machine(backend, functions=sockets, memory=self.memory, **more)
            guest = machine.guest
            for module, parameters in (
                ("virtio_iommu", ""),
                ("uio_pci_generic_sva", ""),
                ("brd", f"rd_nr=2 rd_size={DISK_KIB}"),
            ):
                guest.load(module, parameters)
            for function in FUNCTIONS:
                guest.run(f"bind {function} uio_pci_sva")
            if self.swaps:
                guest.run(f"swap-on {SWAP}")
            guest.run("write /sys/kernel/mm/transparent_hugepage/enabled madvise")
            return backend, machine

        backend, machine = self.shared((options, more), make)
        self.machine = machine
        return machine.guest, backend.control

    def start_process(self, *options: str, **more: Any) -> tuple[Process, Control]:
        """A process that shares its memory with the first function; it has memory for descriptors."""
        guest, control = self.start_functions(*options, **more)
        process = Process(self, guest)
        process.share()
        process.memory(CHAINS, PAGE)
        return process, control

    def assert_answered(self, control: Control) -> None:
        """Asserts that all page requests were answered, in time, and that nothing failed."""
        counters = control.counters()
        self.assertEqual(counters["page_response"], counters["page_request_groups"])
        self.assertEqual((counters["page_response_stale"], counters["page_request_unwanted"]), (0, 0))
        self.assert_clean(control)
