# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""The first part: a stock guest maps a buffer; it is read through the IOMMU from outside; an access beyond it is
blocked, and the guest's kernel says so."""

import pathlib

from lab_kit.vm import lab
from lab_kit.vm.backend import Backend
from lab_kit.vm.control import ControlError, endpoint_id
from lab_kit.vm.machine import Machine

from .common import Failed, debian_kernel, prepare, running, say

ENDPOINT = "00:05.0"
IOVA = 0x100_0000
LENGTH = 0x2000
GREETING = b"Hello from inside the guest."


def printable(data: bytes) -> str:
    return "".join(chr(byte) if 32 <= byte < 127 else "." for byte in data)


def run(directory: pathlib.Path) -> None:
    say("the back-end and the guest's program from source; QEMU and Debian's kernel from packages")
    prepare(debian_kernel)
    with running(directory / "blocked", lab.debian_kernel(), [ENDPOINT], "--boot-bypass", "off") as (backend, machine):
        say(f"back-end (process {backend.process.pid}): a software IOMMU, endpoint {ENDPOINT} behind it")
        show(backend, machine)


def show(backend: Backend, machine: Machine) -> None:
    """The steps with a running machine."""
    guest, control = machine.guest, backend.control
    seconds = machine.wait_ready()
    release = guest.lines("cat /proc/sys/kernel/osrelease")[0]
    say(f"guest: Linux {release} is up, {seconds:.1f} s after QEMU's start")

    guest.load("virtio_iommu")
    # Linux before 6.15 gives a function its group when a driver takes it.
    guest.open_vfio("dev", ENDPOINT)
    kind = guest.group_types()[ENDPOINT]
    group = guest.run(f"readlink /sys/bus/pci/devices/0000:{ENDPOINT}/iommu_group")
    say(f"guest: its virtio-iommu driver put {ENDPOINT} into IOMMU group {group}, type {kind}")
    if control.endpoint(ENDPOINT)["state"] != "attached":
        raise Failed(f"the back-end does not know {ENDPOINT} as attached: {control.status()}")

    guest.run("ioas space")
    guest.run("attach dev space")
    guest.map("space", IOVA, LENGTH, "rw", 0)
    guest.run(f"poke space {IOVA:#x} {GREETING.hex()}")
    domain = control.domain(ENDPOINT)
    say(f"guest: mapped a buffer of {LENGTH:#x} bytes at virtual address {IOVA:#x} of {ENDPOINT} with VFIO")
    for mapping in control.execute("mappings", domain=domain["id"]):
        say(
            f"back-end: domain {domain['id']}: {mapping['iova']:#x}-{mapping['last']:#x} -> guest-physical "
            f"{mapping['gpa']:#x} [{mapping['flags']}]"
        )

    data = control.dma_read(ENDPOINT, IOVA, len(GREETING))
    say(f'outside: {ENDPOINT} reads {IOVA:#x} through the IOMMU: {data[:8].hex(" ")} ...  "{printable(data)}"')
    if data != GREETING:
        raise Failed(f"expected {GREETING!r}")

    beyond = IOVA + LENGTH
    guest.mark_log()
    try:
        control.dma_read(ENDPOINT, beyond, 16)
        raise Failed(f"a read at {beyond:#x} was not blocked")
    except ControlError as error:
        say(f"outside: {ENDPOINT} reads {beyond:#x}, beyond the buffer: blocked ({error})")
    line = guest.wait_log(f"fault from EP {endpoint_id(ENDPOINT)} at {beyond:#x}")
    say(f"guest's kernel log: {line}")

    guest.run("poweroff")
    machine.wait()
    say("done: only what the guest mapped was within reach")
