# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""Shared virtual addressing in a Linux guest, beside what a process does itself and beside VFIO: qemu-scripts/bench shared.

A function's first touch of a page is a page request that the kernel answers, in the table that the process has anyway. It
stands beside a page fault of the processor, and beside a page request that a process serves through VFIO and iommufd.
"""

import os
import pathlib
import statistics
import tempfile

from lab_kit import figure
from lab_kit.environment import lab_environment
from lab_kit.vm import behind, lab
from lab_kit.vm.control import Control
from lab_kit.vm.guest import SECONDS, Guest, fields
from lab_kit.vm.machine import ENDPOINTS

FUNCTIONS = ("00:07.0", "00:08.0")
PAGE = 0x1000
PAGES = 512
# Of an engine, and how long a descriptor is.
BUFFER = 64 << 10
DESCRIPTOR = 64
ROUNDS = 5
PROTECTIONS = 2000
CHAIN, MEMORY, PROTECTED = 0x10_001F_0000, 0x20_0000_0000, 0x40_0000_0000
# In the address space of VFIO.
IOVA_CHAIN, IOVA = 0x1F_0000, 0x100_0000


def nanoseconds(answer: str, name: str) -> int:
    return int(fields(answer)[name])


def write_all(guest: Guest, space: str, chain: int, address: int, more: str) -> None:
    """A chain that writes to each page, and asks for a page at a time."""
    for number in range(PAGES * PAGE // BUFFER):
        at = chain + number * DESCRIPTOR
        following = at + DESCRIPTOR if (number + 1) * BUFFER < PAGES * PAGE else 0
        values = f"address={address + number * BUFFER:#x} length={BUFFER:#x} group=1 next={following:#x}"
        guest.run(f"descriptor {space} {at:#x} write {values} {more}")


def ended(guest: Guest, device: str) -> float:
    """Nanoseconds a page since the start of the engine. Raises `RuntimeError` if it has not written to all of them."""
    answer = fields(guest.run(f"wait {device} 0 {SECONDS}", timeout=SECONDS + 10))
    if answer["outcome"] != "done":
        raise RuntimeError(f"the engine of {device} ended with {answer['outcome']}")
    return int(answer["took"]) / PAGES


def touched_by_function(guest: Guest, pasid: int, address: int) -> float:
    """The function of the process is the first to write to memory."""
    guest.run(f"memory {address:#x} {PAGES * PAGE:#x} private")
    write_all(guest, "process", CHAIN, address, f"pasid={pasid} flags=pasid,page-requests")
    guest.run(f"start shared 0 {CHAIN:#x} {pasid} page-requests")
    return ended(guest, "shared")


def touched_by_process(guest: Guest, address: int) -> float:
    guest.run(f"memory {address:#x} {PAGES * PAGE:#x} private")
    return nanoseconds(guest.run(f"time-touch {address:#x} {PAGES * PAGE:#x}"), "page")


def touched_through_vfio(guest: Guest, address: int) -> float:
    """The process serves the page requests of a function that VFIO has given it."""
    guest.run(f"buffer vfio {address:#x} {PAGES * PAGE:#x} 1")
    write_all(guest, "vfio", IOVA_CHAIN, address, "flags=page-requests")
    guest.run(f"start vfio 0 {IOVA_CHAIN:#x}")
    guest.run(f"page-in vfio vfio {PAGES} {SECONDS} quiet", timeout=SECONDS + 10)
    return ended(guest, "vfio")


def protection(guest: Guest) -> float:
    return nanoseconds(guest.run(f"time-protect {PROTECTED:#x} {PAGE:#x} {PROTECTIONS}"), "round")


def measure(directory: pathlib.Path) -> dict[str, float]:
    """Nanoseconds, medians of some rounds in one guest."""
    sockets = {function: directory / f"{number}.sock" for number, function in enumerate(FUNCTIONS)}
    options = ("--page-response-timeout", "0")
    with behind.running(
        directory, lab.patched_kernel(), list(ENDPOINTS), *options, functions=sockets, processors=2
    ) as (backend, machine):
        machine.wait_ready()
        return measure_in(machine.guest, backend.control)


def measure_in(guest: Guest, control: Control) -> dict[str, float]:
    guest.load("virtio_iommu")
    guest.load("uio_pci_generic_sva")
    guest.run(f"memory {CHAIN:#x} {PAGE:#x} private")
    guest.run(f"memory {PROTECTED:#x} {PAGE:#x} private")
    guest.run(f"fill {PROTECTED:#x} {PAGE:#x} 1")
    alone = [protection(guest) for _ in range(ROUNDS)]
    guest.run(f"bind {FUNCTIONS[0]} uio_pci_sva")
    pasid = nanoseconds(guest.run(f"share shared {FUNCTIONS[0]}"), "pasid")
    before = control.counters()["invalidate"]
    attached = [protection(guest) for _ in range(ROUNDS)]
    if control.counters()["invalidate"] - before < ROUNDS * PROTECTIONS:
        raise RuntimeError("the kernel has taken away permissions without an INVALIDATE")
    guest.open_vfio("vfio", FUNCTIONS[1])
    guest.run("ioas vfio")
    guest.run("table vfio vfio vfio")
    guest.run("attach-table vfio vfio")
    guest.map("vfio", IOVA_CHAIN, PAGE, "rw", 0)
    guest.run("engines vfio")
    results: dict[str, list[float]] = {"function": [], "process": [], "vfio": []}
    for turn in range(ROUNDS):
        places = [MEMORY + (2 * turn + more) * PAGES * PAGE for more in range(2)]
        results["function"].append(touched_by_function(guest, pasid, places[0]))
        results["process"].append(touched_by_process(guest, places[1]))
        results["vfio"].append(touched_through_vfio(guest, IOVA + turn * PAGES * PAGE))
    medians = {name: statistics.median(values) for name, values in results.items()}
    return medians | {"alone": statistics.median(alone), "attached": statistics.median(attached)}


def row(what: str, ours: float, beside: str, other: float, goal: float | None) -> None:
    print(figure.row(what, ours / 1000, other / 1000, goal, beside), flush=True)


def main() -> None:
    os.environ.update(lab_environment())
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        found = measure(pathlib.Path(name))
    print("| in a guest, 2 processors | ours | beside | ratio | goal | |")
    print("|---|---|---|---|---|---|")
    row("a function's first touch of a page", found["function"], "a page fault of the processor", found["process"], None)
    row("a function's first touch of a page", found["function"], "through VFIO and iommufd", found["vfio"], 0.6)
    row("two `mprotect` and a write, a function attached", found["attached"], "without", found["alone"], 1.5)
