# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""The kernel's dma_map_benchmark on a passed-through device, in a guest inside this machine: behind this back-end, and
behind QEMU's own virtio-iommu. Runs in the lab kernel, by `qemu-scripts/bench nested`; prints a table in Markdown."""

import errno
import itertools
import os
import pathlib
import re
import statistics
import sys
import tempfile

from passthrough import EDU, PassthroughMachine, bind, functions

from lab_kit.vm import lab
from lab_kit.vm.control import Control
from lab_kit.vm.guest import Guest, GuestError
from lab_kit.vm.machine import Machine, MachineConfig

GUEST = "00:05.0"
PROCESSORS = 2
THREADS = (1, 2, 4, 8, 16)
PAGES = (1, 4, 16, 64)
CASES = tuple(itertools.product(PAGES, THREADS))
# Each machine is started so often, in turns: what else this machine does concerns both.
ROUNDS = 3
SECONDS = 1
# On a machine that is busy otherwise.
LONGEST = 16

# Microseconds of map and of unmap.
Times = tuple[float, float]
# By pages and threads.
Results = dict[tuple[int, int], Times]


def benchmark(machine: Machine) -> Results:
    machine.wait_ready()
    guest = machine.guest
    guest.load("virtio_iommu")
    if (kind := guest.group_types().get(GUEST)) != "DMA":
        raise RuntimeError(f"the guest translates for {GUEST} with {kind}, and not strictly")
    guest.run(f"bind {GUEST} dma_map_benchmark")
    # An emulator translates code when it meets it.
    times(guest, PAGES[0], THREADS[0])
    return {case: times(guest, *case) for case in CASES}


def times(guest: Guest, pages: int, threads: int) -> Times:
    """For longer than usual where some of the threads have had no turn, which the benchmark calls interrupted."""
    seconds = SECONDS
    while True:
        try:
            result = guest.benchmark(seconds, threads, pages)
            return result["map_100ns"] / 10, result["unmap_100ns"] / 10
        except GuestError as error:
            if os.strerror(errno.EINTR) not in str(error) or seconds == LONGEST:
                raise
        seconds *= 2


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def config(*extra: str) -> MachineConfig:
    return MachineConfig(
        kernel=lab.lab_kernel(),
        command_line="iommu.strict=1",
        memory="256M",
        processors=PROCESSORS,
        edus=(),
        extra=list(extra),
    )


def sleeps(pid: int) -> int:
    """How often the threads of a process have gone to sleep."""
    texts = [path.read_text() for path in pathlib.Path(f"/proc/{pid}/task").glob("*/status")]
    return sum(int(re.search(r"^voluntary_ctxt_switches:\s*(\d+)", text, re.MULTILINE)[1]) for text in texts)


def ours(function: str, directory: pathlib.Path) -> Results:
    machine = PassthroughMachine(config(), directory, [f"{function}={GUEST}"], [])
    try:
        results = benchmark(machine)
        control = Control(machine.control_path, timeout=60)
        counters = control.counters()
        control.close()
        slept = sleeps(machine.backend_pid())
    finally:
        machine.end()
    # A Linux guest does not look at their status.
    if counters["map_failed"] or counters["unmap_failed"]:
        raise RuntimeError(f"{counters['map_failed']} MAP and {counters['unmap_failed']} UNMAP requests failed")
    say(f"ours: {counters['requests']} requests; the back-end's threads slept {slept} times")
    return results


def theirs(function: str, directory: pathlib.Path) -> Results:
    device = f"vfio-pci,host={function},iommufd=iommufd,addr={GUEST.removeprefix('00:')}"
    machine = Machine(config("-object", "iommufd,id=iommufd", "-device", device), directory)
    try:
        return benchmark(machine)
    finally:
        machine.close()


def main() -> None:
    function = functions(EDU)[0]
    bind(function)
    runs = {measure: [] for measure in (ours, theirs)}
    for turn in range(ROUNDS):
        for measure, collected in runs.items():
            with tempfile.TemporaryDirectory(prefix="bench-") as name:
                say(f"turn {turn + 1} of {ROUNDS}: {measure.__name__}")
                collected.append(measure(function, pathlib.Path(name)))
    print("| pages | threads | map, ours | QEMU's own | ratio | unmap, ours | QEMU's own | ratio |")
    print("|---|---|---|---|---|---|---|---|")
    for pages, threads in CASES:
        row = f"| {pages} | {threads} |"
        for operation in (0, 1):
            mine, own = (statistics.median(run[pages, threads][operation] for run in runs[m]) for m in (ours, theirs))
            row += f" {mine:.1f} us | {own:.1f} us | {mine / own:.2f} |"
        print(row)


if __name__ == "__main__":
    main()
