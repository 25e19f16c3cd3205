# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""The third part: a program in a Linux guest gives a buffer to two devices without mapping any of it. It maps each page
when a device touches it, which the guest's driver (guest/linux) tells it as an I/O page fault of iommufd."""

import pathlib
import queue
import threading
import time

from lab_kit.vm import lab
from lab_kit.vm.backend import Backend
from lab_kit.vm.control import Control, ControlError
from lab_kit.vm.guest import Guest, pattern
from lab_kit.vm.machine import ENDPOINTS, Machine

from . import timeline
from .common import Failed, patched_kernel, prepare, running, say
from .timeline import Fault, Touch

READER, WRITER = ENDPOINTS
IOVA = 0x4000_0000
PAGE = 0x1000
# Each endpoint touches half of the buffer: the reader from its start on, the writer from its end backwards.
PAGES = 32
SEED = 7
TOUCHED = 256
BEYOND = IOVA + PAGES * PAGE

# Of so many readings of the guest's clock the quickest one counts.
READINGS = 20
QUIET_SECONDS = 60


def written(address: int) -> bytes:
    """What the second endpoint writes into a page."""
    return f"DMA to {address:#x}. ".encode().ljust(TOUCHED, b".")


class Endpoint(threading.Thread):
    """A software endpoint that touches one page after the other; an access waits until its page is there."""

    def __init__(self, control: pathlib.Path, function: str, addresses: list[int], finished: queue.Queue):
        super().__init__(daemon=True)
        self._control = Control(control, timeout=QUIET_SECONDS)
        self._function = function
        self._addresses = addresses
        self._finished = finished

    def run(self) -> None:
        for address in self._addresses:
            self._finished.put(self._touch(address))
        self._control.close()

    def _touch(self, address: int) -> Touch:
        began, data, refused = time.monotonic_ns(), b"", ""
        try:
            if self._function == READER:
                data = self._control.dma_read(READER, address, TOUCHED)
            else:
                self._control.dma_write(WRITER, address, written(address))
        except ControlError as error:
            refused = str(error)
        return Touch(self._function, address, began, time.monotonic_ns(), data, refused)


def clock_offset(guest: Guest) -> int:
    """What to add to the guest's clock for ours, in nanoseconds."""
    readings = []
    for _ in range(READINGS):
        before = time.monotonic_ns()
        theirs = int(guest.run("clock"))
        after = time.monotonic_ns()
        readings.append((after - before, (before + after) // 2 - theirs))
    return min(readings)[1]


def parse_fault(line: str, offset: int) -> Fault:
    words = dict(word.split("=", 1) for word in line.split())
    told = int(words["time"]) + offset
    return Fault(
        endpoint=words["endpoint"].removeprefix("0000:"),
        address=int(words["address"], 16),
        access=words["access"],
        group=int(words["group"]),
        told=told,
        mapped=told + int(words["mapped"]),
        answered=told + int(words["answered"]),
        success=words["answer"] == "success",
    )


def serve(machine: Machine, control: pathlib.Path, touches: dict[str, list[int]]) -> list[tuple[Touch, Fault]]:
    """Lets the endpoints touch their pages while the guest's program serves them: a line for each."""
    guest = machine.guest
    offset = clock_offset(guest)
    arrived: queue.Queue = queue.Queue()
    total = sum(len(addresses) for addresses in touches.values())

    def page_in() -> None:
        command = f"page-in table space {total} {QUIET_SECONDS}"
        try:
            guest.follow(command, lambda line: arrived.put(parse_fault(line, offset)), QUIET_SECONDS)
        except Exception as error:
            arrived.put(error)

    guest_side = threading.Thread(target=page_in, daemon=True)
    guest_side.start()
    began = time.monotonic_ns()
    for function, addresses in touches.items():
        Endpoint(control, function, addresses, arrived).start()
    halves: dict[tuple[str, int], Touch | Fault] = {}
    pairs: list[tuple[Touch, Fault]] = []
    while len(pairs) < total:
        half = arrived.get(timeout=QUIET_SECONDS)
        if isinstance(half, Exception):
            raise Failed(f"the guest's program: {half}")
        other = halves.pop((half.endpoint, half.address), None)
        if other is None:
            halves[half.endpoint, half.address] = half
            continue
        pairs.append((half, other) if isinstance(half, Touch) else (other, half))
        show(*pairs[-1], began)
    guest_side.join()
    return pairs


def show(touch: Touch, fault: Fault, began: int) -> None:
    verb = "reads " if touch.endpoint == READER else "writes"
    answer = "mapped it and answered" if fault.success else "answered INVALID_REQUEST"
    end = "DMA refused" if touch.refused else "DMA done"
    print(
        f"{(touch.began - began) / 1e6:10.2f} ms  {touch.endpoint} {verb} {touch.address:#x} [{fault.access}]  "
        f"group {fault.group:<3} the program {answer} in {(fault.answered - fault.told) / 1e3:.0f} us; "
        f"{end} after {(touch.ended - touch.began) / 1e3:.0f} us",
        flush=True,
    )


def touch_again(control: pathlib.Path, touches: dict[str, list[int]]) -> list[Touch]:
    """The same accesses once more: no page request, as every page is mapped."""
    again: queue.Queue = queue.Queue()
    for function, addresses in touches.items():
        endpoint = Endpoint(control, function, addresses, again)
        endpoint.start()
        endpoint.join()
    return [again.get_nowait() for _ in range(PAGES)]


def check(guest: Guest, pairs: list[tuple[Touch, Fault]], touches: dict[str, list[int]]) -> None:
    """Every access inside of the buffer had its bytes, and the one outside had none."""
    buffer = pattern(SEED, PAGES * PAGE)
    for touch, _ in pairs:
        start = touch.address - IOVA
        if touch.endpoint == READER and touch.data != (b"" if touch.refused else buffer[start : start + TOUCHED]):
            raise Failed(f"{touch.endpoint} read other bytes at {touch.address:#x} than the program has there")
        if (touch.address == BEYOND) != touch.refused.startswith("PageRequestFailed"):
            raise Failed(f"{touch.endpoint} at {touch.address:#x}: {touch.refused or 'was not refused'}")
    for address in touches[WRITER]:
        if guest.peek("space", address, TOUCHED) != written(address):
            raise Failed(f"the program's memory at {address:#x} is not what {WRITER} wrote")


def story(backend: Backend, machine: Machine, directory: pathlib.Path, picture: pathlib.Path) -> None:
    guest = machine.guest
    seconds = machine.wait_ready()
    release = guest.lines("cat /proc/sys/kernel/osrelease")[0]
    guest.load("virtio_iommu")
    say(f"guest: Linux {release} with the driver of guest/linux is up, {seconds:.1f} s after QEMU's start")
    for number, function in enumerate(ENDPOINTS):
        guest.open_vfio(function, function)
        if number == 0:
            guest.run("ioas space")
            guest.run(f"table table {function} space")
        guest.run(f"attach-table {function} table")
    guest.run(f"buffer space {IOVA:#x} {PAGES * PAGE:#x} {SEED}")
    mapped = backend.control.domain(READER)["bytes"]
    say(f"guest: a program has a buffer of {PAGES} pages at {IOVA:#x} for {READER} and {WRITER}; {mapped} bytes are mapped")
    if mapped:
        raise Failed("something is mapped before anything was touched")

    half = PAGES // 2
    touches = {
        READER: [IOVA + page * PAGE for page in range(half)],
        WRITER: [IOVA + page * PAGE for page in range(PAGES - 1, half - 1, -1)],
    }
    say("both devices touch it, page by page; each access waits until the guest has answered:")
    control = directory / "control.sock"
    pairs = serve(machine, control, {READER: [*touches[READER], BEYOND], WRITER: touches[WRITER]})
    check(guest, pairs, touches)
    domain = backend.control.domain(READER)
    say(f"back-end: {domain['bytes'] // PAGE} pages are mapped now; beyond the buffer none is, and the DMA there failed")

    requests = backend.control.counters()["page_request_groups"]
    again = touch_again(control, touches)
    if any(touch.refused for touch in again) or backend.control.counters()["page_request_groups"] != requests:
        raise Failed("touching mapped pages again made page requests")
    say("both devices touch every page again: no page request")
    picture.parent.mkdir(parents=True, exist_ok=True)
    picture.write_text(timeline.draw(pairs, again, release))
    guest.run("poweroff")
    machine.wait()
    say(f"done: nothing was mapped in advance. The picture: {picture}")


def run(directory: pathlib.Path, picture: pathlib.Path) -> None:
    say("a guest with the lab kernel (compiled once, some minutes) and the patched driver: memory mapped on demand")
    prepare(patched_kernel)
    place = directory / "on-demand"
    with running(place, lab.patched_kernel(), list(ENDPOINTS)) as (backend, machine):
        story(backend, machine, place, picture)
