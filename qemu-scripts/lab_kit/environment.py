# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""Where everything is, in the variables that `vm.lab` reads: fetched and built if it is not there."""

from . import cargo, kernel, programs, qemu, selftest


def lab_environment() -> dict[str, str]:
    """For guests of the lab kernel and of Debian's."""
    lab_kernel, debian_kernel = kernel.ensure_kernel(), kernel.ensure_debian_kernel()
    return {
        "LAB_QEMU": " ".join(qemu.ensure_qemu()),
        "LAB_KERNEL": str(lab_kernel.image),
        "LAB_MODULES": str(lab_kernel.modules),
        "LAB_DEBIAN_KERNEL": str(debian_kernel.image),
        "LAB_DEBIAN_MODULES": str(debian_kernel.modules),
        "LAB_BACKEND": str(cargo.backend()),
        "LAB_INIT": str(programs.guest_init()),
        "LAB_PCI_SELFTEST": str(selftest.ensure_pci_selftest()),
        "LAB_VFIO_SELFTESTS": str(selftest.ensure_vfio_selftests()),
    }
