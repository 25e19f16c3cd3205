# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""A guest with devices of this machine passed through, started by qemu-scripts/run-vm."""

import contextlib
import fcntl
import os
import pathlib
import select
import shlex
import signal
import struct
from collections.abc import Iterable
from typing import Any

from bases.testcase import FunctionalTest
from lab_kit import trouble
from lab_kit.vm import lab
from lab_kit.vm.control import Control
from lab_kit.vm.guest import TIMEOUT
from lab_kit.vm.machine import COMMAND_LINE, Machine, MachineConfig

RUN_VM = pathlib.Path(__file__).resolve().parents[2] / "qemu-scripts" / "run-vm"
SYSFS = pathlib.Path("/sys/bus/pci/devices")

# _IO(';', 118)
VFIO_DEVICE_BIND_IOMMUFD = 0x3B76

EDU = (0x1234, 0x11E8)
NVME = (0x1B36, 0x0010)


def functions(kind: tuple[int, int]) -> list[str]:
    """The functions of this machine with these vendor and device IDs, by address."""

    def is_one(function: pathlib.Path) -> bool:
        return kind == tuple(int((function / name).read_text(), 16) for name in ("vendor", "device"))

    return sorted(function.name for function in SYSFS.iterdir() if is_one(function))


def bind(function: str, driver: str = "vfio-pci") -> None:
    """Gives a function of this machine to a driver."""
    path = SYSFS / function
    if (path / "driver").exists():
        if (path / "driver").resolve().name == driver:
            return
        (path / "driver" / "unbind").write_text(function)
    (path / "driver_override").write_text(driver)
    pathlib.Path("/sys/bus/pci/drivers_probe").write_text(function)


def vfio_device(function: str) -> str:
    """The character device of a function that is bound to vfio-pci."""
    return f"/dev/vfio/devices/{next((SYSFS / function / 'vfio-dev').iterdir()).name}"


def end_process(pid: int, number: signal.Signals) -> None:
    """Ends a process with a signal, and waits until all that it had open is closed."""
    process = os.pidfd_open(pid)
    try:
        signal.pidfd_send_signal(process, number)
        if not select.select([process], [], [], TIMEOUT)[0]:
            raise TimeoutError(f"process {pid} goes on after {number.name}")
    finally:
        os.close(process)


class PassthroughMachine(Machine):
    """A machine that run-vm starts."""

    def __init__(self, config: MachineConfig, directory: pathlib.Path, devices: Iterable[str], options: list[str]):
        self._devices = devices
        self._options = options
        self.control_path = directory / "control.sock"
        super().__init__(config, directory)

    def command(self, config: MachineConfig, image: pathlib.Path) -> list[str]:
        command = [str(RUN_VM), "--backend", str(lab.backend()), "--control", str(self.control_path)]
        for device in self._devices:
            command += ["--device", device]
        return [
            *command, *self._options, "--memory", config.memory,
            "--qemu", shlex.join([*lab.qemu(), "-nodefaults", "-no-user-config", "-display", "none"]), "--",
            "-accel", "tcg,thread=multi", "-cpu", "max", "-smp", str(config.processors),
            "-kernel", str(config.kernel.image), "-initrd", str(image),
            "-append", f"{COMMAND_LINE} {config.command_line}", *config.extra,
        ]  # fmt: skip

    @property
    def kernel_log(self) -> str:
        """The same, less a first kernel that gave up before it came to any device: its like has followed it."""
        return trouble.without_early_panic(super().kernel_log)

    def hold_launcher(self) -> None:
        """Keeps run-vm from ending the others when one of its processes has ended."""
        self.process.send_signal(signal.SIGSTOP)

    def release_launcher(self) -> None:
        self.process.send_signal(signal.SIGCONT)

    def end(self) -> None:
        """SIGTERM, so that run-vm ends what it has started."""
        if self.process.poll() is None:
            self.release_launcher()
            self.process.terminate()
            self.wait()
        self.close()

    def qemu_pid(self) -> int:
        return self._child("memory-backend-memfd")

    def backend_pid(self) -> int:
        return self._child("--socket-path")

    def _child(self, argument: str) -> int:
        """The process of run-vm that has this in its command line."""
        for process in pathlib.Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                # The fourth field; the second is a name in parentheses.
                parent = int((process / "stat").read_text().rpartition(")")[2].split()[1])
                if parent == self.process.pid and argument in (process / "cmdline").read_text():
                    return int(process.name)
        raise AssertionError(f"run-vm has no child with {argument}")


class PassthroughTest(FunctionalTest):
    """Starts machines with run-vm."""

    def assert_free(self, function: str) -> None:
        """Asserts that nobody holds a device any more: it can be opened and bound."""
        device, iommufd = (os.open(path, os.O_RDWR) for path in (vfio_device(function), "/dev/iommu"))
        try:
            fcntl.ioctl(device, VFIO_DEVICE_BIND_IOMMUFD, bytearray(struct.pack("<IIiI", 16, 0, iommufd, 0)))
        finally:
            os.close(device)
            os.close(iommufd)

    def start_passthrough(
        self, *devices: str, options: tuple[str, ...] = (), extra: tuple[str, ...] = (), **more: Any
    ) -> PassthroughMachine:
        """A machine with these devices, HOST=GUEST each; its init runs. `options` are for run-vm, `extra` for QEMU;
        `more` goes to the machine's configuration."""
        config = MachineConfig(kernel=self.kernel(), extra=list(extra), **{"memory": "256M", **more})
        for device in devices:
            bind(device.partition("=")[0])
        machine = PassthroughMachine(config, self.directory, devices, list(options))
        self.addCleanup(machine.end)
        self.addCleanup(self._check, machine)
        machine.wait_ready()
        return machine

    def connect_to(self, machine: PassthroughMachine) -> Control:
        control = Control(machine.control_path, timeout=60)
        self.addCleanup(control.close)
        return control
