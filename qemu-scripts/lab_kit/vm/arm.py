# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""QEMU's machine for Arm: who is behind the IOMMU stands in its device tree."""

import pathlib
import subprocess
from collections.abc import Iterable

from . import lab
from .machine import IOMMU, Machine, MachineConfig, device_options

# The page of the machine's ITS that messages are written to (GITS_TRANSLATER), as a reserved region of MSI.
MSI_WINDOW = (0x809_0000, 0x809_FFFF)

COMMAND_LINE = "console=ttyAMA0 loglevel=6 panic=-1 nowatchdog printk.devkmsg=on"

# What is added to the tree that QEMU makes: the IOMMU, a function of the host bridge, and whom it translates
# (Documentation/devicetree/bindings/virtio/pci-iommu.yaml). An endpoint's ID is its address.
OVERLAY = """\
/dts-v1/;
/plugin/;

&{{/pcie@10000000}} {{
    #address-cells = <3>;
    #size-cells = <2>;
    iommu-map = {entries};

    iommu: iommu@{device:x},{function:x} {{
        compatible = "pci1af4,1057";
        reg = <{reg:#x} 0 0 0 0>;
        #iommu-cells = <1>;
    }};
}};
"""


def _address(place: str) -> tuple[int, int, int]:
    bus, rest = place.split(":")
    device, function = rest.split(".")
    return int(bus, 16), int(device, 16), int(function, 16)


def _id(place: str) -> int:
    bus, device, function = _address(place)
    return bus << 8 | device << 3 | function


def overlay(iommu: str, endpoints: Iterable[str]) -> str:
    """The source of the addition."""
    _, device, function = _address(iommu)
    return OVERLAY.format(entries=_entries(endpoints), device=device, function=function, reg=_id(iommu) << 8)


# The same for an IOMMU that is a device of virtio-mmio.
MMIO_OVERLAY = """\
/dts-v1/;
/plugin/;

/ {{
    fragment@0 {{
        target-path = "/virtio_mmio@a000000";
        iommu: __overlay__ {{
            #iommu-cells = <1>;
        }};
    }};
    fragment@1 {{
        target-path = "/pcie@10000000";
        __overlay__ {{
            iommu-map = {entries};
        }};
    }};
}};
"""


def _entries(endpoints: Iterable[str]) -> str:
    return ", ".join(f"<{_id(endpoint):#x} &iommu {_id(endpoint):#x} 1>" for endpoint in endpoints)


def mmio_overlay(endpoints: Iterable[str]) -> str:
    """The source of the addition, with the IOMMU on virtio-mmio."""
    return MMIO_OVERLAY.format(entries=_entries(endpoints))


class ArmMachine(Machine):
    """A running QEMU for Arm: one interrupt controller of version 3 with an ITS, and its PCI host bridge."""

    qemu = staticmethod(lab.arm_qemu)
    init = staticmethod(lab.arm_init)
    takes_viot = False

    def command(self, config: MachineConfig, image: pathlib.Path) -> list[str]:
        machine = [
            "-nodefaults", "-no-user-config", "-display", "none",
            "-accel", "tcg,thread=multi", "-cpu", "max", "-smp", str(config.processors), "-m", config.memory,
            "-object", f"memory-backend-memfd,id=mem,size={config.memory},share=on", "-numa", "node,memdev=mem",
        ]  # fmt: skip
        return [
            *self.qemu(), "-machine", "virt,gic-version=3", *machine, "-dtb", str(self._device_tree(machine, config)),
            "-kernel", str(config.kernel.image), "-initrd", str(image),
            "-append", f"{COMMAND_LINE} {config.command_line}",
            *self.devices(config),
        ]  # fmt: skip

    def overlay(self, config: MachineConfig) -> str:
        """What the device tree gets in addition."""
        return overlay(IOMMU, config.endpoints)

    def devices(self, config: MachineConfig) -> list[str]:
        """QEMU's options for the IOMMU and its endpoints."""
        return device_options(config)

    def _device_tree(self, machine: list[str], config: MachineConfig) -> pathlib.Path:
        """QEMU's own tree of the machine with the addition."""
        own, source, compiled, tree = (
            self.directory / name for name in ("virt.dtb", "iommu.dtso", "iommu.dtbo", "guest.dtb")
        )
        source.write_text(self.overlay(config))
        # Two serial lines, as the guest has them.
        serial = ["-serial", "null", "-serial", "null"]
        for command in (
            [*self.qemu(), "-machine", f"virt,gic-version=3,dumpdtb={own}", *machine, *serial],
            ["dtc", "-q", "-I", "dts", "-O", "dtb", "-o", str(compiled), str(source)],
            ["fdtoverlay", "-i", str(own), "-o", str(tree), str(compiled)],
        ):
            subprocess.run(command, check=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        return tree


class NestingMachine(ArmMachine):
    """The machine with Arm's own IOMMU, of two stages, and an `edu` behind it: a host, without a device of ours."""

    def command(self, config: MachineConfig, image: pathlib.Path) -> list[str]:
        return [
            *self.qemu(), "-machine", "virt,gic-version=3,iommu=smmuv3", "-global", "arm-smmuv3.stage=nested",
            "-nodefaults", "-no-user-config", "-display", "none",
            "-accel", "tcg,thread=multi", "-cpu", "max", "-smp", str(config.processors), "-m", config.memory,
            "-kernel", str(config.kernel.image), "-initrd", str(image),
            "-append", f"{COMMAND_LINE} {config.command_line}",
            "-device", "edu,dma_mask=0xffffffff",
        ]  # fmt: skip


class MmioMachine(ArmMachine):
    """The same with the IOMMU on virtio-mmio; the kernel's driver for that is among `programs`."""

    def overlay(self, config: MachineConfig) -> str:
        return mmio_overlay(config.endpoints)

    def devices(self, config: MachineConfig) -> list[str]:
        return ["-global", "virtio-mmio.force-legacy=off", *device_options(config, ",bus=virtio-mmio-bus.0")]
