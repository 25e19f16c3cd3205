# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""A guest with a software function, whose fault engine a program in the guest drives over VFIO and iommufd.

See docs/fault-engine.md and guest/README.md.
"""

from lab_kit.vm.backend import Backend
from lab_kit.vm.control import Control
from lab_kit.vm.guest import SECONDS, Guest, fields
from lab_kit.vm.machine import ENDPOINTS, Machine

from .testcase import FunctionalTest

FUNCTION = "00:07.0"
PAGE = 0x1000

# The address space "one": descriptors, memory that is mapped, and what is not.
CHAIN = 0x10_0000
LIST = 0x10_4000
TARGET = 0x10_8000
CHAIN_LENGTH = 0x2_0000
IOVA = 0x40_0000

# Registers: of the function, and of an engine.
ENABLED, OUTSTANDING, OUTSTANDING_PEAK = 0x0C, 0x10, 0x14
STATUS, LIMIT, COMPLETED, GROUPS, MARKERS = 0x04, 0x1C, 0x24, 0x40, 0x4C
HITS, MISSES, INVALIDATED, CACHED = 0x50, 0x54, 0x58, 0x5C

# ENABLED.
BUS_MASTER, ATS, PRI, PASID, EXEC, PRIVILEGED = (1 << bit for bit in range(6))
WAITING_FOR_ALLOCATION = 3


def engine_register(engine: int, offset: int) -> int:
    return 0x100 + 0x100 * engine + offset


class EngineTest(FunctionalTest):
    """A guest with one software function, opened under the name "one"."""

    def start_function(self, *options: str) -> tuple[Guest, Control]:
        """A back-end with the function, a machine, the driver, and the function open."""

        def make() -> tuple[Backend, Machine]:
            socket = self.directory / "function.sock"
            endpoints = (*ENDPOINTS, f"{FUNCTION},soft={socket}")
            backend = self.start_backend("--page-response-timeout", "0", *options, endpoints=endpoints)
            machine = self.start_machine(backend, functions={FUNCTION: socket})
            machine.guest.load("virtio_iommu", self.driver_parameters)
            return backend, machine

        backend, machine = self.shared(options, make)
        machine.guest.open_vfio("one", FUNCTION)
        return machine.guest, backend.control

    def take_engines(self, guest: Guest) -> None:
        """Memory for descriptors, and the interrupts of the engines."""
        guest.map("one", CHAIN, CHAIN_LENGTH, "rw", 0)
        guest.run("engines one")

    def start_attached(self, *options: str, pasids: bool = False) -> tuple[Guest, Control]:
        """The function in the address space "one", with a fault queue."""
        guest, control = self.start_function(*options)
        guest.run("ioas one")
        guest.run(f"table one one one {'pasids' if pasids else ''}")
        guest.run("attach-table one one")
        self.take_engines(guest)
        return guest, control

    def start_with_pasids(self, *pasids: int) -> tuple[Guest, Control]:
        """Each PASID has an address space of its own, under its number."""
        guest, control = self.start_attached(pasids=True)
        for pasid in pasids:
            guest.run(f"ioas {pasid}")
            guest.run(f"table {pasid} one {pasid} pasids")
            guest.run(f"attach-pasid one {pasid} {pasid}")
        return guest, control

    def register(self, guest: Guest, offset: int) -> int:
        return int(guest.run(f"register one {offset:#x}"), 16)

    def store(self, guest: Guest, at: int, operation: str, **values: object) -> None:
        words = (f"{name}={value:#x}" if isinstance(value, int) else f"{name}={value}" for name, value in values.items())
        guest.run(f"descriptor one {at:#x} {operation} {' '.join(words)}")

    def begin(self, guest: Guest, operation: str, engine: int = 0, **values: object) -> None:
        """Starts an engine on a chain of one descriptor, at a place of its own."""
        at = CHAIN + 64 * engine
        self.store(guest, at, operation, **values)
        guest.run(f"start one {engine} {at:#x}")

    def end(self, guest: Guest, engine: int = 0) -> dict[str, str]:
        """Waits for the end of such a chain: the completion of its descriptor."""
        outcome = fields(guest.run(f"wait one {engine} {SECONDS}"))["outcome"]
        completion = fields(guest.run(f"completion one {CHAIN + 64 * engine:#x}"))
        self.assertEqual(completion["status"], outcome)
        return completion

    def run_one(self, guest: Guest, operation: str, engine: int = 0, **values: object) -> dict[str, str]:
        self.begin(guest, operation, engine, **values)
        return self.end(guest, engine)

    def outcome(self, guest: Guest, engine: int = 0) -> str:
        """How a chain ended whose descriptor cannot say it."""
        return fields(guest.run(f"wait one {engine} {SECONDS}"))["outcome"]

    def faults(self, guest: Guest, table: str = "one") -> list[dict[str, str]]:
        return [fields(line) for line in guest.lines(f"faults {table} {SECONDS}")]

    def answer(self, guest: Guest, fault: dict[str, str], code: str, table: str = "one") -> None:
        guest.run(f"answer {table} {fault['cookie']} {code}")

    def assert_none_outstanding(self, guest: Guest, control: Control) -> None:
        self.assertEqual(self.register(guest, OUTSTANDING), 0)
        self.assertEqual(control.counters()["page_response_stale"], 0)
        self.assert_clean(control)
