# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""QEMU with a guest that runs our init."""

import json
import pathlib
import re
import socket
import subprocess
import time
from dataclasses import dataclass, field
from typing import Any

from .. import initramfs
from . import lab
from .guest import TIMEOUT, Guest
from .lines import Console, LineSocket
from .modules import Modules
from .tied import tied

# Where things are in the guest. The generic vhost-user device is the IOMMU; `edu` devices are the endpoints. Their
# own DMA bypasses us, as that of all of QEMU's emulated devices: accesses come from the control socket.
IOMMU = "00:04.0"
ENDPOINTS = ("00:05.0", "00:06.0")

# nokaslr: the kernel's text is where the tests look for it. nowatchdog, no_timer_check: a busy machine stops an emulated
# processor for long enough to look like a lockup, or its timer like a broken one; a real one is found by the time limits
# of the tests. printk.devkmsg: the tests write to the log as often as they like.
COMMAND_LINE = (
    "console=ttyS0 loglevel=6 panic=-1 nokaslr nowatchdog no_timer_check printk.devkmsg=on "
    "iommufd.allow_unsafe_interrupts=1"
)

# A kernel that is there for a crash has a part of memory to itself.
CRASH_KERNEL = "crashkernel=192M"
NEXT_INITRAMFS = "next-initramfs"

# Where a q35 machine has the registers of its power management and of configuration space (PMBASE, ACPI_CNTL, RCBA,
# PCIEXBAR). They are reset in S3, and QEMU 11.1's firmware does not set them again: the machine would sleep no second time.
CHIPSET = ("00:1f.0 0x40", "00:1f.0 0x44", "00:1f.0 0xf0", "00:00.0 0x60")

# What may be a module; kernels have some of it built in, or not at all.
MODULES = ["virtio_iommu", "vfio_pci", "vfio_iommu_type1", "lkdtm", "pci_endpoint_test", "nvme", "uio_pci_generic_sva", "brd"]


@dataclass
class MachineConfig:
    """What a machine is made of."""

    kernel: lab.Kernel
    # The vhost-user socket of the back-end; None for QEMU's own virtio-iommu, to compare with.
    vhost_socket: pathlib.Path | None = None
    viot: pathlib.Path | None = None
    command_line: str = ""
    memory: str = "512M"
    processors: int = 1
    # Elements of each queue of the back-end.
    queue_size: int = 1024
    # Where `edu` devices are, on bus 0.
    edus: tuple[str, ...] = ENDPOINTS
    # Software functions: where they are (an `edu` makes room), and their vfio-user sockets. One on bus 1 sits behind a port
    # of `extra` that is called `bus1`.
    functions: dict[str, pathlib.Path] = field(default_factory=dict)
    # Files for the guest's root directory.
    programs: list[pathlib.Path] = field(default_factory=list)
    # How many kernels may follow the first one (`Machine.go_on`).
    next_kernels: int = 0
    extra: list[str] = field(default_factory=list)

    @property
    def endpoints(self) -> tuple[str, ...]:
        """All that is behind the IOMMU."""
        return tuple(dict.fromkeys([*self.edus, *self.functions]))


def _addr(function: str) -> str:
    return function.split(":")[1]


def qemu_command(config: MachineConfig, image: pathlib.Path) -> list[str]:
    """QEMU with everything but the lines to the guest; `image` is the initramfs."""
    command = [
        *lab.qemu(), "-nodefaults", "-no-user-config", "-display", "none",
        "-machine", "q35", "-accel", "tcg,thread=multi", "-cpu", "max", "-smp", str(config.processors), "-m", config.memory,
        "-object", f"memory-backend-memfd,id=mem,size={config.memory},share=on", "-numa", "node,memdev=mem",
        "-kernel", str(config.kernel.image), "-initrd", str(image),
        "-append", f"{COMMAND_LINE} {config.command_line}",
    ]  # fmt: skip
    if config.viot:
        command += ["-acpitable", f"sig=VIOT,rev=0,data={config.viot}"]
    return [*command, *device_options(config)]


def device_options(config: MachineConfig, place: str = f"-pci,addr={_addr(IOMMU)}") -> list[str]:
    """The IOMMU, where `place` says, and its endpoints."""
    if config.vhost_socket:
        generic = "chardev=iommu,virtio-id=23,num_vqs=2,config_size=40"
        options = ["-chardev", f"socket,id=iommu,path={config.vhost_socket}"]
        options += ["-device", f"vhost-user-test-device{place},{generic},vq_size={config.queue_size}"]
    else:
        options = ["-device", f"virtio-iommu-pci,addr={_addr(IOMMU)}"]
    for endpoint in (endpoint for endpoint in config.edus if endpoint not in config.functions):
        options += ["-device", f"edu,addr={_addr(endpoint)}"]
    options += config.extra
    for function, path in config.functions.items():
        device: dict[str, Any] = {"driver": "vfio-user-pci", "addr": _addr(function)}
        device["socket"] = {"type": "unix", "path": str(path)}
        if bus := int(function.split(":")[0], 16):
            device["bus"] = f"bus{bus}"
        options += ["-device", json.dumps(device)]
    return options


class Machine:
    """A running QEMU."""

    # QEMU's command, and the guest's program.
    qemu = staticmethod(lab.qemu)
    init = staticmethod(lab.guest_init)
    # Whether a table of ACPI tells the guest who is behind the IOMMU.
    takes_viot = True

    def __init__(self, config: MachineConfig, directory: pathlib.Path):
        self.directory = directory
        self.config = config
        modules = Modules(config.kernel.modules)
        image = directory / "initramfs"
        files = [*modules.unpack(MODULES, directory / "modules"), *config.programs]
        initramfs.write(image, self.init(), files)
        # Each has in it the kernel that follows, and that one's.
        for _ in range(config.next_kernels):
            image.rename(following := directory / NEXT_INITRAMFS)
            initramfs.write(image, self.init(), [*files, config.kernel.image, following])
        self._kernel = config.kernel.image.name
        # One socket pair per channel: nothing to wait for, and the end of QEMU is the end of the file.
        ours, theirs = {}, {}
        for name in ("console", "guest", "qmp"):
            ours[name], theirs[name] = socket.socketpair()
        self.log = directory / "qemu.log"
        self.console_log = directory / "console.log"
        lines = [
            "-chardev", f"socket,id=console,fd={theirs['console'].fileno()}", "-serial", "chardev:console",
            "-chardev", f"socket,id=guest,fd={theirs['guest'].fileno()}", "-serial", "chardev:guest",
            "-chardev", f"socket,id=qmp,fd={theirs['qmp'].fileno()}", "-qmp", "chardev:qmp",
        ]  # fmt: skip
        command = [*self.command(config, image), *lines]
        with self.log.open("ab") as log:
            log.write((" ".join(command) + "\n").encode())
            log.flush()
            self.process = subprocess.Popen(
                tied(command),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=[sock.fileno() for sock in theirs.values()],
            )
        for sock in theirs.values():
            sock.close()
        self.started = time.monotonic()
        self.console = Console(ours["console"], self.console_log.open("ab"))
        self.guest = Guest(ours["guest"], modules)
        self._qmp = LineSocket(ours["qmp"], "QMP")
        self._greeted = False
        self._events: list[str] = []
        self._plugged = 0

    def command(self, config: MachineConfig, image: pathlib.Path) -> list[str]:
        """What runs QEMU; arguments for QEMU follow."""
        return qemu_command(config, image)

    def wait_ready(self) -> float:
        """Waits until the guest's program has started: the seconds since the start of QEMU."""
        self.guest.wait_ready()
        return time.monotonic() - self.started

    def qmp(
        self, command: str, timeout: float = TIMEOUT, descriptors: tuple[int, ...] = (), **arguments: Any
    ) -> Any:
        """Runs a QMP command: what it returned."""
        self._greet(timeout)
        self._qmp.send(json.dumps({"execute": command, "arguments": arguments}), descriptors)
        while True:
            answer = json.loads(self._qmp.receive(timeout))
            if "error" in answer:
                raise RuntimeError(f"QMP {command}: {answer['error']['desc']}")
            if "return" in answer:
                return answer["return"]
            self._events.append(answer["event"])

    def _greet(self, timeout: float) -> None:
        """QEMU says nothing on the monitor, events neither, until the client has said what it can."""
        if not self._greeted:
            self._qmp.receive(timeout)
            self._greeted = True
            self.qmp("qmp_capabilities")

    def wait_event(self, name: str, timeout: float = 60.0) -> None:
        """Waits for an event of QEMU; each is found once."""
        self._greet(timeout)
        while name not in self._events:
            self._events.append(json.loads(self._qmp.receive(timeout))["event"])
        self._events.remove(name)

    def load_next(self, way: str, command_line: str = "") -> None:
        """Loads a kernel that can follow this one: in good order (`kexec`) or after a panic (`crash`, which wants
        `CRASH_KERNEL` on the command line of the one that panics)."""
        command_line = f"{COMMAND_LINE} {command_line} follows={way}"
        self.guest.run(f"kexec-load /{self._kernel} /{NEXT_INITRAMFS} {way} {command_line}")

    def go_on(self, way: str) -> None:
        """Goes on with the kernel that was loaded, without a reset of the machine; waits for its init."""
        self.guest.run(way)
        self.guest.wait_ready()
        (booted,) = self.guest.lines("cat /proc/cmdline")
        if f"follows={way}" not in booted:
            raise RuntimeError(f"{way}: the machine was reset")

    def suspend_to_memory(self) -> None:
        """ACPI's S3: the guest's kernel sleeps, QEMU resets the devices and wakes it."""
        chipset = {place: self.guest.run(f"config {place}") for place in CHIPSET}
        sleep = "write /sys/power/state mem"
        self._greet(TIMEOUT)
        self.guest.begin(sleep)
        self.wait_event("SUSPEND", TIMEOUT)
        if (status := self.qmp("query-status")["status"]) != "suspended":
            raise RuntimeError(f"the machine is not suspended: {status}")
        self.qmp("system_wakeup")
        self.wait_event("WAKEUP", TIMEOUT)
        self.guest.end(sleep)
        for place, value in chipset.items():
            self.guest.run(f"config {place} {value}")

    @property
    def kernel_log(self) -> str:
        """What the guest's kernels have said, less the last words of one that was told to crash."""
        return re.sub("sysrq: Trigger a crash.*?Linux version", "", self.console.text, flags=re.DOTALL)

    def unplug(self, name: str) -> None:
        """Asks the guest to let a device go. QEMU refuses while the guest is not done with the device's coming."""
        deadline = time.monotonic() + TIMEOUT
        while True:
            try:
                self.qmp("device_del", id=name)
                return
            except RuntimeError as error:
                if "guest is busy" not in str(error) or time.monotonic() > deadline:
                    raise
            time.sleep(0.05)

    def plug_memory(self, length: int) -> None:
        """A module of memory, above 4 GiB, where `-m` leaves room; waits until the guest knows of it.

        Each has a name of its own, as QEMU (11.1) wants it: it finds a file of memory by its name.
        """
        self._plugged += 1
        memory = {"qom-type": "memory-backend-memfd", "id": self._memory(), "size": length, "share": True}
        self.qmp("object-add", **memory)
        self.qmp("device_add", driver="pc-dimm", id="module", memdev=self._memory())
        self.wait_event("ACPI_DEVICE_OST", TIMEOUT)

    def unplug_memory(self) -> None:
        """Takes the module out, which the guest must not use; waits until it has let go of it."""
        self.qmp("device_del", id="module")
        # The guest says that it has begun, and, when it has seen that the module is gone, that it is done.
        for event in ("ACPI_DEVICE_OST", "DEVICE_DELETED", "ACPI_DEVICE_OST"):
            self.wait_event(event, TIMEOUT)
        self.qmp("object-del", id=self._memory())

    def _memory(self) -> str:
        """The name of the last module's memory."""
        return f"more{self._plugged}"

    def read_physical(self, address: int, length: int) -> bytes:
        """Guest memory as QEMU sees it."""
        path = self.directory / "pmemsave"
        self.qmp("pmemsave", val=address, size=length, filename=str(path))
        return path.read_bytes()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def wait(self, timeout: float = 60.0) -> int:
        """Waits until QEMU ends by itself: its exit status."""
        return self.process.wait(timeout)

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self.console.close()
        self.guest.close()
        self._qmp.close()
