# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""The test suites: `unit`, `host`, `guest`, `nested`."""

import os
import re
import subprocess
import sys
import tempfile

from . import boot, cargo, cross, debian, kernel, programs, qemu, selftest
from .cache import Missing
from .cargo import ROOT
from .tally import CargoCounter, Counter, Tally, UnittestCounter, follow, lines

FUZZ_TARGETS = ("ring", "function")
FUZZ_SECONDS = 60

# What cargo-fuzz sets, so that a plain cargo is enough: coverage counters, comparisons, the address sanitizer.
FUZZ_FLAGS = (
    "--cfg fuzzing -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 "
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table "
    "-Cllvm-args=-sanitizer-coverage-trace-compares -Clink-dead-code -Cforce-frame-pointers -Cdebug-assertions "
    "-Coverflow-checks -Ccodegen-units=1 -Zsanitizer=address"
)
FUZZ_HOST = "x86_64-unknown-linux-gnu"

# Beside an edu function on the root bus: an NVMe disk and an edu function behind ports of their own, and two more that
# share a bridge to conventional PCI, and with it an IOMMU group.
NESTED_DEVICES = (
    "-device pcie-root-port,id=port0,chassis=1,slot=1 "
    "-drive file={disk},format=raw,if=none,id=disk -device nvme,drive=disk,serial=disk,bus=port0 "
    "-device pcie-pci-bridge,id=bridge -device edu,bus=bridge,addr=1 -device edu,bus=bridge,addr=2 "
    "-device pcie-root-port,id=port1,chassis=2,slot=2 -device edu,bus=port1"
)
DISK_BYTES = 64 << 20


def lab_environment() -> dict[str, str]:
    """Where everything is, for tests that start QEMU."""
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
    }


def patched_environment() -> dict[str, str]:
    """The same for the patched kernel."""
    patched = kernel.ensure_patched_kernel()
    return {"LAB_PATCHED_KERNEL": str(patched.image), "LAB_PATCHED_MODULES": str(patched.modules)}


def arm_environment() -> dict[str, str]:
    """The same for a guest on Arm."""
    # dtc and fdtoverlay put the IOMMU into its device tree.
    debian.need_tools({"dtc": "device-tree-compiler", "fdtoverlay": "device-tree-compiler"})
    stock, patched = kernel.ensure_arm_kernel(), kernel.ensure_arm_patched_kernel()
    return {
        "LAB_ARM_QEMU": " ".join(qemu.ensure_arm_qemu()),
        "LAB_ARM_KERNEL": str(stock.image),
        "LAB_ARM_MODULES": str(stock.modules),
        "LAB_ARM_PATCHED_KERNEL": str(patched.image),
        "LAB_ARM_PATCHED_MODULES": str(patched.modules),
        "LAB_ARM_INIT": str(programs.arm_guest_init()),
        "LAB_ARM_PCI_SELFTEST": str(selftest.ensure_pci_selftest(cross.COMPILER)),
    }


def unit(tally: Tally) -> None:
    """cargo test; miri on the pure modules; each fuzz target for a minute."""
    before = tally.failed
    status = follow(["cargo", "test", "--no-fail-fast"], CargoCounter(tally).line, cwd=ROOT, env=cargo.environment())
    tally.finished("cargo test", status, before)
    _miri(tally)
    for target in FUZZ_TARGETS:
        _fuzz(tally, target)


def _miri(tally: Tally) -> None:
    """The modules without I/O, under miri. A toolchain that has it cannot be had everywhere: its lack is no failure."""
    version = subprocess.run(["cargo", "+nightly", "miri", "--version"], capture_output=True, check=False)
    if version.returncode != 0:
        print("unit: miri NOT RUN: not installed: rustup +nightly component add miri rust-src", flush=True)
        return
    before = tally.failed
    # Property tests read the clock and the environment.
    environment = {**cargo.environment(), "MIRIFLAGS": "-Zmiri-disable-isolation"}
    command = ["cargo", "+nightly", "miri", "test", "--lib", "--", "spec::", "device::"]
    status = follow(command, CargoCounter(tally).line, cwd=ROOT, env=environment)
    tally.finished("cargo miri test", status, before)


def _fuzz(tally: Tally, name: str) -> None:
    fuzz = ROOT / "fuzz"
    if not (fuzz / "Cargo.toml").exists():
        tally.missing("unit: fuzz", "fuzz/Cargo.toml does not exist")
        return
    # The flags are unstable ones; RUSTC_BOOTSTRAP lets every toolchain take them.
    environment = {**cargo.environment(), "RUSTC_BOOTSTRAP": "1", "RUSTFLAGS": FUZZ_FLAGS}
    build = ["build", "--release", "--manifest-path", str(fuzz / "Cargo.toml"), "--bin", name]
    target = ["--target", FUZZ_HOST, "--target-dir", str(fuzz / "target")]
    if subprocess.run(["cargo", *build, *target], cwd=ROOT, env=environment, check=False).returncode != 0:
        tally.test(f"fuzz::{name}", False, "does not build")
        return
    program = fuzz / "target" / FUZZ_HOST / "release" / name
    corpus, artifacts = fuzz / "corpus" / name, fuzz / "artifacts" / name
    for directory in (corpus, artifacts):
        directory.mkdir(parents=True, exist_ok=True)
    command = [
        str(program), f"-max_total_time={FUZZ_SECONDS}", "-timeout=10", "-print_final_stats=1",
        f"-artifact_prefix={artifacts}/", str(corpus),
    ]  # fmt: skip
    seeds = fuzz / "seeds" / name
    if seeds.is_dir():
        command.append(str(seeds))
    print(f"fuzz::{name}: {FUZZ_SECONDS} s", flush=True)
    runs, output, status = 0, [], 1
    for line in lines(command, cwd=fuzz):
        if isinstance(line, int):
            status = line
            continue
        output.append(line)
        if found := re.match(r"stat::number_of_executed_units:\s*(\d+)", line):
            runs = int(found[1])
    good = status == 0 and runs > 0
    if not good:
        print("\n".join(output[-60:]))
    tally.test(f"fuzz::{name}", good, f"{runs} inputs in {FUZZ_SECONDS} s" if good else f"see {artifacts}")


def _in_lab_kernel(tally: Tally, suite: str, host: boot.Host, program: list[str], counter: Counter) -> None:
    """Runs tests in the lab kernel, and reads the kernel's log afterwards."""
    before = tally.failed
    result = boot.run(host, program, counter)
    tally.finished(f"{suite} in the lab kernel", result.status, before)
    trouble = result.trouble() or ([] if result.log else ["there is none"])
    for line in trouble:
        print(f"kernel: {line}")
    tally.test(f"{suite}::kernel_log_is_free_of_warnings", not trouble)


def host(tally: Tally) -> None:
    """The iommufd host on the kernel's mock devices, in the lab kernel."""
    qemu.ensure_qemu(), kernel.ensure_kernel()
    program = cargo.test_binary("host_suite")
    command = [str(program), "--test-threads=1", "--color=never"]
    _in_lab_kernel(tally, "host", boot.Host(iommu=True), command, CargoCounter(tally))


def guest(tally: Tally) -> None:
    """Linux guests behind the back-end, with the software host: stock ones, with the patched driver, on a kernel that
    checks itself, and on Arm."""
    environment = {**os.environ, **lab_environment(), "PYTHONUNBUFFERED": "1"}
    environment["LAB_ODD_BACKEND"] = str(cargo.odd_backend())
    try:
        environment |= patched_environment()
    except Missing as missing:
        tally.missing("guest: the patched kernel", missing)
    try:
        for name, found in (
            ("LAB_DEBUG", kernel.ensure_debug_kernel()),
            ("LAB_DEBUG_PATCHED", kernel.ensure_debug_patched_kernel()),
        ):
            environment |= {f"{name}_KERNEL": str(found.image), f"{name}_MODULES": str(found.modules)}
        print("guest: test_debug_kernel runs on the kernel with lockdep and KASAN", flush=True)
    except Missing as missing:
        tally.missing("guest: the kernel with lockdep and KASAN", missing)
    try:
        environment |= arm_environment()
    except Missing as missing:
        tally.missing("guest: Arm", missing)
    before = tally.failed
    command = [sys.executable, "-m", "unittest", "discover", "-v"]
    status = follow(command, UnittestCounter(tally).line, cwd=ROOT / "tests" / "functional", env=environment)
    tally.finished("functional tests", status, before)


def nested(tally: Tally) -> None:
    """The lab kernel as a host with an emulated Intel IOMMU and devices behind it, and guests inside it."""
    environment = {
        **lab_environment(),
        **patched_environment(),
        "LAB_TEST_BACKEND": str(cargo.test_backend()),
        "LAB_PATIENCE": "5",
        "LAB_DISK_SECONDS": os.environ.get("LAB_DISK_SECONDS", "120"),
        "PYTHONPATH": str(ROOT / "tests" / "functional"),
        "PYTHONUNBUFFERED": "1",
    }
    # The interpreter itself: a wrapper of it in PATH may need more than the lab kernel has.
    interpreter, tests = os.path.realpath(sys.executable), ROOT / "tests" / "nested"
    command = [interpreter, "-m", "unittest", "discover", "-v", "-s", str(tests)]
    with tempfile.NamedTemporaryFile(prefix="lab-", suffix=".img", dir="/var/tmp") as disk:
        disk.truncate(DISK_BYTES)
        devices = NESTED_DEVICES.format(disk=disk.name).split()
        machine = boot.Host(iommu=True, memory="4G", timeout=3600, environment=environment, extra=devices)
        _in_lab_kernel(tally, "nested", machine, command, UnittestCounter(tally))


SUITES = {"unit": unit, "host": host, "guest": guest, "nested": nested}


def run(names: list[str], tally: Tally) -> None:
    for name in names:
        print(f"== {name}", flush=True)
        try:
            SUITES[name](tally)
        except Missing as missing:
            tally.missing(name, missing)
        except cargo.BuildFailed as failure:
            tally.test(f"{name} builds", False, str(failure))
