# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""A guest with two endpoints behind the IOMMU, a kernel of the user's own, and a shell on this terminal."""

import pathlib
import subprocess

from lab_kit import busybox, initramfs
from lab_kit.vm import lab
from lab_kit.vm.backend import Backend, write_viot
from lab_kit.vm.machine import ENDPOINTS, IOMMU, MODULES, MachineConfig, qemu_command
from lab_kit.vm.modules import Modules

from .common import Failed, patched_kernel, prepare, say

# What a kernel needs for this; the IOMMU's driver may be a module.
OPTIONS = "SERIAL_8250_CONSOLE BLK_DEV_INITRD RD_GZIP BINFMT_SCRIPT DEVTMPFS VIRTIO_PCI VIRTIO_IOMMU ACPI_VIOT"

INIT = """\
#!/busybox sh
/busybox mkdir -p /bin
/busybox --install -s /bin
export PATH=/bin HOME=/ PS1='guest# '
mount -t proc proc /proc
mount -t sysfs sysfs /sys
grep -q ' /dev ' /proc/mounts || mount -t devtmpfs devtmpfs /dev
mount -t debugfs debugfs /sys/kernel/debug 2>/dev/null
for module in {modules}; do insmod /modules/$module.ko; done
echo
cat /hints
setsid cttyhack sh
poweroff -f
"""

HINTS = """\
Linux {release}, behind virtio-iommu; its endpoints, PCI functions in software: {endpoints}. Try here:
    dmesg | grep -i iommu
    ls -d /sys/kernel/iommu_groups/*/devices/*
    insmod /modules/pci_endpoint_test.ko     the functions' stock driver, where it is there
    exit                                     ends the guest; so does Ctrl-a x
and in another terminal:
    {program} ctl {control} status
    {program} ctl {control} dma-read endpoint={first} iova=0x1000 length=16
The second is DMA of an endpoint to an address that nobody mapped: it is blocked, and this guest's kernel says so here.

"""


def user_kernel(image: pathlib.Path, modules: pathlib.Path | None, directory: pathlib.Path) -> lab.Kernel:
    """The kernel of the command line; without a directory of modules it has none."""
    for path in (image, modules):
        if path and not path.exists():
            raise Failed(f"{path} does not exist")
    empty = directory / "no-modules"
    empty.mkdir()
    return lab.Kernel(image, modules or empty)


def release_of(image: pathlib.Path) -> str:
    """What a bzImage says of itself: the offset of its version is in its header (Documentation/arch/x86/boot)."""
    with image.open("rb") as file:
        header = file.read(0x210)
        if header[0x202:0x206] != b"HdrS":
            return image.name
        file.seek(0x200 + int.from_bytes(header[0x20E:0x210], "little"))
        return file.read(256).split(b"\0")[0].split(b" ")[0].decode(errors="replace")


def pack(kernel: lab.Kernel, control: pathlib.Path, directory: pathlib.Path) -> pathlib.Path:
    """The initramfs: busybox, the IOMMU's driver where it is a module, the hints."""
    modules = Modules(kernel.modules)
    init, hints, image = directory / "init", directory / "hints", directory / "initramfs"
    init.write_text(INIT.format(modules=" ".join(modules.order("virtio_iommu"))))
    hints.write_text(
        HINTS.format(
            release=release_of(kernel.image),
            endpoints=" and ".join(ENDPOINTS),
            first=ENDPOINTS[0],
            program=lab.backend(),
            control=control,
        )
    )
    files = modules.unpack(MODULES, directory / "modules")
    initramfs.write(image, init, [busybox.ensure_busybox(), hints, *files])
    return image


def run(directory: pathlib.Path, image: pathlib.Path | None, modules: pathlib.Path | None, words: str) -> None:
    prepare((lambda: None) if image else patched_kernel)
    kernel = user_kernel(image, modules, directory) if image else lab.patched_kernel()
    # An endpoint that nobody attached reaches nothing: kernels before 6.15 attach one when a driver takes it.
    functions = {endpoint: directory / f"function{number}.sock" for number, endpoint in enumerate(ENDPOINTS)}
    endpoints = [f"{endpoint},soft={path}" for endpoint, path in functions.items()]
    backend = Backend(lab.backend(), directory, endpoints, ["--boot-bypass", "off"])
    try:
        viot = directory / "viot.bin"
        write_viot(lab.backend(), viot, IOMMU, list(ENDPOINTS))
        initrd = pack(kernel, directory / "control.sock", directory)
        say(f"booting {kernel.image}; if nothing comes, see whether it has {OPTIONS}")
        config = MachineConfig(kernel=kernel, vhost_socket=backend.socket, viot=viot, command_line=words, functions=functions)
        command = [*qemu_command(config, initrd), "-serial", "mon:stdio", "-no-reboot"]
        if (status := subprocess.run(command, check=False).returncode) != 0:
            raise Failed(f"QEMU ended with status {status}")
    finally:
        backend.close()
    say("the guest has ended")
