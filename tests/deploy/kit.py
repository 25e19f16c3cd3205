# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""A system with our package on it: the one that `qemu-scripts/lab libvirt` fetches, with what Cargo.toml has a package
install. Programs run in it with mounts and processes of their own; nothing of this machine changes."""

import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import tomllib
import unittest

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "qemu-scripts"))

from lab_kit import cache, libvirt  # noqa: E402
from lab_kit.vm import lab  # noqa: E402

# $1 has a mount point, and the directory `state` that stays; the layers below are $2. $BOUND is seen as it is here.
ENTER = """
set -e
cd "$1"
mount -t tmpfs none top
mkdir top/upper top/work top/root
mount -t overlay overlay -o "lowerdir=$2,upperdir=top/upper,workdir=top/work" top/root
cd top/root
mkdir -p state dev/shm proc sys tmp
mount --bind "$1/state" state
mount --rbind /sys sys
mount -t proc none proc
mount -t tmpfs none dev/shm
for device in null zero full random urandom; do
    touch "dev/$device"
    mount --bind "/dev/$device" "dev/$device"
done
for path in $BOUND; do
    mkdir -p "./$path"
    mount --bind "$path" "./$path"
done
root=$PWD
shift 2
# No exec: this shell is the first process here, and buries those that programs leave behind.
chroot "$root" "$@"
exit $?
"""

# The unpacked packages have run no script that would make them.
FILES = {
    "etc/passwd": "root:x:0:0:root:/root:/bin/sh\nlibvirt-qemu:x:64055:64055::/:/bin/sh\nnobody:x:65534:65534::/:/bin/sh\n",
    "etc/group": "root:x:0:\ntty:x:5:\nkvm:x:994:\nlibvirt-qemu:x:64055:\nnogroup:x:65534:\n",
    "etc/nsswitch.conf": "passwd: files\ngroup: files\nhosts: files\n",
    "etc/hosts": f"127.0.0.1 localhost {os.uname().nodename}\n",
}

PATH = "/usr/sbin:/usr/bin:/sbin:/bin"


def metadata() -> dict:
    """What Cargo.toml says about the package."""
    return tomllib.loads((ROOT / "Cargo.toml").read_text())["package"]["metadata"]["deb"]


def installed() -> dict[str, tuple[str, int]]:
    """The files that a package installs: for each path on the system its source in the tree, and its mode."""
    files = {}
    for source, destination, mode in metadata()["assets"]:
        built = source.startswith("target/")
        found = [ROOT / source] if built else sorted(ROOT.glob(source))
        if not found:
            raise AssertionError(f"Cargo.toml: {source}: there is no such file")
        for path in found:
            name = destination + path.name if destination.endswith("/") else destination
            files[name] = (str(path.relative_to(ROOT)), int(mode, 8))
    return files


class SystemTest(unittest.TestCase):
    """A test with such a system."""

    # Directories of this machine that the system sees, at the same paths.
    bound: tuple[str, ...] = ()

    def setUp(self) -> None:
        try:
            with cache.closed():
                self.system = libvirt.ensure_libvirt()
            self.program = program = lab.backend()
        except cache.Missing as missing:
            self.skipTest(f"{missing}: run qemu-scripts/lab libvirt")
        scratch = tempfile.TemporaryDirectory(prefix="lab-")
        self.addCleanup(scratch.cleanup)
        self.directory = pathlib.Path(scratch.name)
        self.state, ours = self.directory / "state", self.directory / "ours"
        for path in (self.state, ours, self.directory / "top"):
            path.mkdir()
        for name, text in FILES.items():
            (ours / name).parent.mkdir(exist_ok=True)
            (ours / name).write_text(text)
        for name, (source, mode) in installed().items():
            target = ours / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(program if source.startswith("target/") else ROOT / source, target)
            target.chmod(mode)
        self.ours = ours
        self._layers = f"{ours}:{self.system}"

    def start(self, *command: str, **options) -> subprocess.Popen:
        """Starts a program in the system. With it all that it starts ends."""
        own = ["--map-root-user"] if os.geteuid() else []
        enter = ["unshare", *own, "--mount", "--pid", "--fork", "--kill-child", "sh", "-c", ENTER, "sh"]
        arguments = [*enter, str(self.directory), self._layers, *command]
        environment = {"PATH": PATH, "LC_ALL": "C", "SYSTEMD_COLORS": "0", "BOUND": " ".join(self.bound)}
        options = {"stdin": subprocess.DEVNULL, "text": True, **options}
        process = subprocess.Popen(arguments, env=environment, **options)
        self.addCleanup(process.wait)
        self.addCleanup(process.kill)
        return process

    def run_in(self, *command: str) -> subprocess.CompletedProcess:
        """Runs a program to its end: its status, and all that it said."""
        process = self.start(*command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        output, _ = process.communicate(timeout=120)
        return subprocess.CompletedProcess(command, process.returncode, output)
