# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""Boots the lab kernel on the machine's own files (9p) and runs one program as its only task.

The program's output comes as it is written, its exit status is the guest's. It sees the same paths as here and may
write to them; /run and /dev/shm are its own.
"""

import os
import pathlib
import secrets
import shlex
import shutil
import subprocess
import sys
import tempfile
import threading
from dataclasses import dataclass, field

from . import kernel, qemu, trouble
from .cache import Missing
from .tally import Output

# no_timer_check: on a busy machine an emulated timer can look broken to the kernel, which panics then.
APPEND = (
    "console=ttyS0 quiet root=hostfs rootfstype=9p "
    "rootflags=trans=virtio,version=9p2000.L,cache=loose,msize=524288 rw "
    "panic=-1 no_timer_check iommufd.allow_unsafe_interrupts=1 init={init}"
)

# An emulated Intel IOMMU, and a device with a DMA engine behind it.
IOMMU = "intel-iommu,scalable-mode=on,fsts=on,svm=on,pasid-bits=20,device-iotlb=on,intremap=off"

INIT = """\
#!/bin/sh
export PATH={path} HOME={home} TMPDIR=/run LC_ALL=C {environment}
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mountpoint -q /dev || mount -t devtmpfs devtmpfs /dev
mkdir -p /dev/shm /run
mount -t tmpfs tmpfs /dev/shm
mount -t tmpfs tmpfs /run
mount -t debugfs debugfs /sys/kernel/debug
[ -e /dev/fd ] || ln -s /proc/self/fd /dev/fd
ulimit -n 65536
echo {marker} started
cd {directory} && {command} </dev/null
status=$?
dmesg >{log}
echo $status >{status}
sync
echo {marker} status $status
# Waits until the console has sent what was written: the reset would swallow it.
stty echo <&1
echo b >/proc/sysrq-trigger
sleep 60
"""


@dataclass
class Host:
    """What the guest machine is made of."""

    cpus: int = 2
    memory: str = "3G"
    iommu: bool = False
    timeout: float = 900.0
    environment: dict[str, str] = field(default_factory=dict)
    extra: list[str] = field(default_factory=list)


@dataclass
class Result:
    """How a run ended: the program's exit status, and the kernel's log."""

    status: int
    log: str

    def trouble(self) -> list[str]:
        """Lines of the kernel log that tell of a bug."""
        return trouble.lines(self.log)


def _command(host: Host, init: pathlib.Path) -> list[str]:
    command = [
        *qemu.ensure_qemu(), "-M", "q35", "-accel", "tcg,thread=multi", "-cpu", "max", "-smp", str(host.cpus),
        "-m", host.memory, "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
        "-chardev", "stdio,id=console,signal=off", "-serial", "chardev:console",
        "-kernel", str(kernel.ensure_kernel().image), "-append", APPEND.format(init=init),
        "-fsdev", "local,id=f,path=/,security_model=none", "-device", "virtio-9p-pci,fsdev=f,mount_tag=hostfs",
    ]  # fmt: skip
    if host.iommu:
        command += ["-device", IOMMU, "-device", "edu,dma_mask=0xffffffff"]
    return command + host.extra


def run(host: Host, program: list[str], output: Output = sys.stdout) -> Result:
    """Runs `program` in the lab kernel. Raises `Missing` when the kernel did not come as far as the program."""
    if shutil.which(program[0]) is None:
        raise Missing(f"{program[0]}: no such program")
    marker = f"lab-{secrets.token_hex(8)}"
    with tempfile.TemporaryDirectory(prefix="lab-", dir="/var/tmp") as scratch:
        directory = pathlib.Path(scratch)
        init, log, result = directory / "init", directory / "dmesg", directory / "status"
        environment = {"RUST_BACKTRACE": "1", **host.environment}
        init.write_text(
            INIT.format(
                path=shlex.quote(os.environ.get("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")),
                home=shlex.quote(os.environ.get("HOME", "/")),
                environment=" ".join(f"{name}={shlex.quote(value)}" for name, value in environment.items()),
                marker=marker,
                directory=shlex.quote(os.getcwd()),
                command=shlex.join(program),
                log=log,
                status=result,
            )
        )
        init.chmod(0o755)
        with subprocess.Popen(
            _command(host, init), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        ) as process:
            timer = threading.Timer(host.timeout, process.kill)
            timer.start()
            try:
                started, status, last = _follow(process, marker, output)
            finally:
                timer.cancel()
                process.kill()
        if status is None and result.exists():
            # The program ended in good order; the last line on the console was lost.
            text = result.read_text().strip()
            status = int(text) if text.isdigit() else None
        if status is None:
            if not started:
                raise Missing(f"the lab kernel did not start: {last or 'no output'}")
            output.write(f"lab: the guest ended or took more than {host.timeout:.0f} s before the program did\n")
            status = 124
        return Result(status, log.read_text(errors="replace") if log.exists() else "")


def _follow(process: subprocess.Popen[bytes], marker: str, output: Output) -> tuple[bool, int | None, str]:
    """Copies the console: whether the program started, its status, the last line."""
    started, status, last = False, None, ""
    assert process.stdout
    for raw in process.stdout:
        if status is not None:
            # What the kernel says of its end.
            continue
        line = raw.decode(errors="replace").rstrip("\r\n")
        before, found, after = line.partition(marker)
        if found:
            words = after.split()
            started = True
            if words[0] == "status":
                status = int(words[1])
            line = before
        if line or (started and not found):
            last = line or last
            output.write(line + "\n")
            output.flush()
    return started, status, last
