# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""The fourth part: a program in a Linux guest gives a device a pointer. The device works on the program's own memory, with
the program's own page table (shared virtual addressing): nothing of it is mapped for the device, and nothing is pinned."""

import pathlib
from collections.abc import Iterable
from dataclasses import dataclass

from lab_kit.vm import lab
from lab_kit.vm.backend import Backend
from lab_kit.vm.guest import SECONDS, Guest, fields
from lab_kit.vm.machine import ENDPOINTS, Machine

from . import memory_map
from .common import Failed, patched_kernel, prepare, running, say
from .memory_map import Page

FUNCTION = "00:07.0"
PAGE = 0x1000
WORDS = ("A device ", "follows ", "the pointers ", "of a program ", "through its ", "own memory.")
# The list, with an element on each page; the words, with one on each page; and where the device puts them together, across
# the border of two pages.
LIST, TEXT, RESULT = 0x10_0000_0000, 0x20_0010_0000, 0x30_0020_0000
TARGET = RESULT + PAGE - len("".join(WORDS)) // 2
# Where the kernel moves every second page of the list and of the words before the walk.
SWAP = "ram0"
# Registers of engine 0: see docs/fault-engine.md.
GROUPS, REQUESTS, HITS = 0x140, 0x144, 0x150


@dataclass(frozen=True)
class Element:
    """An element of the list: where it is, which word it has the device copy, from where, to where."""

    at: int
    word: str
    source: int
    target: int

    def pages(self) -> list[tuple[str, int]]:
        """The pages that it takes."""
        first, last = self.target & -PAGE, (self.target + len(self.word) - 1) & -PAGE
        return [("list", self.at), ("words", self.source), *(("result", page) for page in sorted({first, last}))]


def elements() -> list[Element]:
    out, target = [], TARGET
    for number, word in enumerate(WORDS):
        out.append(Element(LIST + number * PAGE, word, TEXT + number * PAGE, target))
        target += len(word)
    return out


class Program:
    """The program in the guest."""

    def __init__(self, guest: Guest):
        self.guest = guest
        self.pasid = int(fields(guest.run(f"share device {FUNCTION}"))["pasid"])

    def write_list(self, items: list[Element]) -> None:
        for start, pages in ((LIST, len(items)), (TEXT, len(items)), (RESULT, 2)):
            self.guest.run(f"memory {start:#x} {pages * PAGE:#x} private")
        for item, following in zip(items, [*items[1:], None], strict=True):
            self.guest.run(f"poke process {item.source:#x} {item.word.encode().hex()}")
            self.guest.run(
                f"descriptor process {item.at:#x} copy address={item.source:#x} other={item.target:#x} "
                f"length={len(item.word)} pasid={self.pasid} next={following.at if following else 0:#x} "
                "flags=pasid,page-requests"
            )

    def page_out_all(self, addresses: Iterable[int]) -> None:
        """Has the kernel move pages out to swap, as if it were short of memory."""
        # It cannot while a page waits in a list of the processor. This empties those lists.
        self.guest.run("write /proc/sys/vm/drop_caches 1")
        for address in addresses:
            self.guest.run(f"advise {address:#x} {PAGE:#x} pageout")

    def where(self, address: int) -> str:
        """Where a page is, as the kernel says."""
        words = fields(self.guest.run(f"pages {address:#x} {PAGE:#x}"))
        return "memory" if int(words["present"]) else "swap" if int(words["swapped"]) else "nowhere yet"

    def walk(self) -> str:
        """Gives the device the pointer to the first element, and waits: how the walk ended."""
        self.guest.run(f"start device 0 {LIST:#x} {self.pasid} page-requests")
        return fields(self.guest.run(f"wait device 0 {SECONDS}"))["outcome"]

    def completion(self, item: Element) -> dict[str, str]:
        return fields(self.guest.run(f"completion process {item.at:#x}"))

    def register(self, offset: int) -> int:
        return int(self.guest.run(f"register device {offset:#x}"), 16)

    def result(self) -> str:
        return self.guest.peek("process", TARGET, len("".join(WORDS))).decode(errors="replace")


def expect(condition: bool, otherwise: str) -> None:
    if not condition:
        raise Failed(otherwise)


def set_up(machine: Machine) -> Program:
    seconds = machine.wait_ready()
    guest = machine.guest
    for module, parameters in (("virtio_iommu", ""), ("uio_pci_generic_sva", ""), ("brd", "rd_nr=1 rd_size=4096")):
        guest.load(module, parameters)
    guest.run(f"bind {FUNCTION} uio_pci_sva")
    guest.run(f"swap-on {SWAP}")
    release = guest.lines("cat /proc/sys/kernel/osrelease")[0]
    say(f"guest: Linux {release} with the driver of guest/linux is up, {seconds:.1f} s after QEMU's start")
    return Program(guest)


def missing(items: list[Element], where: dict[int, str]) -> list[list[Page]]:
    """The pages of each element, and whether each is in memory when the device comes to it. It comes in its own turn: what
    an element has had brought in is there for those that follow."""
    there = {address for address, place in where.items() if place == "memory"}
    out = []
    for item in items:
        out.append([Page(kind, address, where[address], address not in there) for kind, address in item.pages()])
        there |= {address for _, address in item.pages()}
    return out


def show(program: Program, item: Element, pages: list[Page]) -> int:
    """A line for an element: the page requests of its copy."""
    done = program.completion(item)
    expect(done["status"] == "done" and int(done["done"]) == len(item.word), f"the element at {item.at:#x}: {done}")
    asked = [page for page in pages if page.asked]
    data = [page for page in asked if page.kind != "list"]
    expect(
        int(done["groups"]) == len(data),
        f"the copy at {item.at:#x} made {done['groups']} page requests; the kernel had {len(data)} of its pages elsewhere",
    )
    requests = [f"{page.kind} {page.address:#x} ({page.was})" for page in asked]
    hits = [f"{page.kind} {page.address:#x}" for page in pages if not page.asked]
    told = [f"{name} {', '.join(found)}" for name, found in (("page request:", requests), ("hit:", hits)) if found]
    print(
        f"{'':11}{item.at:#x}: copied {item.word!r:15} from {item.source:#x} to {item.target:#x}; {'; '.join(told)}",
        flush=True,
    )
    return int(done["groups"])


def story(backend: Backend, machine: Machine, picture: pathlib.Path) -> None:
    program, items = set_up(machine), elements()
    guest, control = program.guest, backend.control
    program.write_list(items)
    program.page_out_all([item.at for item in items[1::2]] + [item.source for item in items[::2]])
    where = {address: program.where(address) for item in items for _, address in item.pages()}
    places = list(where.values())
    out = sum(place != "memory" for place in places)
    expect(0 < out < len(places), f"the pages are not where the demo wants them: {where}")
    say(f"guest: a program has a list of {len(items)} elements in its memory, an ordinary pointer from each to the next; "
        f"of {len(places)} pages {out} are not in memory: {places.count('swap')} in swap, the others never touched")  # fmt: skip

    before = control.counters()
    say(f"the program gives the device the pointer {LIST:#x}; it walks the list:")
    outcome = program.walk()
    expect(outcome == "done", f"the walk ended with {outcome}")
    pages = missing(items, where)
    of_copies = sum(show(program, item, taken) for item, taken in zip(items, pages, strict=True))
    requests, hits = program.register(REQUESTS), program.register(HITS)
    of_list = sum(page.asked for taken in pages for page in taken if page.kind == "list")
    wanted = of_copies + of_list
    expect(requests == wanted, f"{requests} page requests; {wanted} pages were not in memory")
    text = program.result()
    expect(text == "".join(WORDS), f"the program reads {text!r}")
    say(f"guest: the program reads {text!r}")
    after = control.counters()
    answered = after["page_response"] - before["page_response"]
    expect(answered == requests, f"{requests} page requests, and {answered} answers of the guest's kernel")
    expect(after["map"] == before["map"], "something was mapped while the device walked")
    there = sum(not page.asked for taken in pages for page in taken)
    say(f"device: {requests} page requests, all answered by the guest's kernel; {there} times a page was there (hits); "
        f"for {hits} accesses it had kept the translation")  # fmt: skip
    domain = control.domain(FUNCTION)
    expect(domain["bytes"] == 0, f"{domain['bytes']} bytes are mapped for the device")
    say(f"back-end: {after['map'] - before['map']} mappings were made; {domain['bytes']} bytes are mapped for the device")

    expect(program.walk() == "done" and program.result() == text, "the second walk did not end as the first one")
    again = program.register(REQUESTS)
    # Every chain has the engine count on.
    expect(again == requests, f"the second walk made {again - requests} page requests")
    say("the device walks the list a second time: no page request")

    program.page_out_all(where)
    kept = [hex(address) for address in where if program.where(address) != "swap"]
    expect(not kept, f"the kernel could not move these pages out: {', '.join(kept)}")
    say(f"guest: the kernel moves all {len(where)} pages out to swap, as the device has pinned none")

    guest.run(f"protect {RESULT:#x} {2 * PAGE:#x} r")
    outcome = program.walk()
    expect(outcome == "invalid-request", f"the device wrote where the program may only read: {outcome}")
    refused = program.completion(items[0])
    expect(int(refused["address"], 0) == items[0].target, f"the access that was refused is another one: {refused}")
    expect(program.result() == text, "the memory that the program may only read has changed")
    say(f"the program makes the result read-only; the device's write to {items[0].target:#x} is refused ({outcome})")
    picture.parent.mkdir(parents=True, exist_ok=True)
    picture.write_text(memory_map.draw(pages, text, requests, hits))
    guest.run("poweroff")
    machine.wait()
    say(f"done: one pointer was all that the device was given. The picture: {picture}")


def run(directory: pathlib.Path, picture: pathlib.Path) -> None:
    say("a guest with the lab kernel (compiled once, some minutes) and the patched driver: a device in a program's memory")
    prepare(patched_kernel)
    place = directory / "shared"
    functions = {FUNCTION: directory / "function.sock"}
    with running(place, lab.patched_kernel(), list(ENDPOINTS), functions=functions) as (backend, machine):
        story(backend, machine, picture)
