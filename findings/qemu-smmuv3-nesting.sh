#!/bin/bash
# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
#
# Software:  QEMU 11.1.3 (Debian 1:11.1.3+ds-1~bpo13+1, trixie-backports), machine virt with iommu=smmuv3
# Behaviour: The emulated SMMUv3 offers stage 1 and stage 2, so a guest's kernel can nest one in the other. But Linux (7.3) lets a
#            user nest only where caches stay coherent whatever a table says: the SMMU must force write-back (S2FWB in IDR3), or
#            the firmware must promise it of the root complex (CANWBS in the IORT). QEMU's machine says neither, though nothing in
#            it has caches, so Linux refuses nested tables there (IOMMU_VIOMMU_ALLOC: EOPNOTSUPP). And -global
#            arm-smmuv3.stage=1 changes nothing, as the machine sets that property itself.
# Seen:      IDR0 has both stages, IDR3 has no forced write-back, and the root complex in the IORT has CPM and DACS without
#            CANWBS; the same with stage=1 and with stage=nested.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"

# QEMU and what it depends on, of exactly these versions, from the archive that this machine uses. They are unpacked and not
# installed: apt has a state of its own here.
packages=(qemu-system-arm=1:11.1.3+ds-1~bpo13+1)
mirror=$(apt-get indextargets --format '$(COMPONENT) $(REPO_URI)' 'Created-By: Packages' 'Codename: bookworm' |
    awk '$1 == "main" { print $2; exit }')
[ -n "$mirror" ] || { echo "apt's configuration has no archive of Debian 12" >&2; exit 2; }
mkdir -p apt/lists/partial apt/archives/partial root
touch apt/status
for suite in trixie trixie-backports; do
    echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror $suite main"
done >apt/sources.list
cat >apt/apt.conf <<END
Dir::State "$work/apt";
Dir::State::status "$work/apt/status";
Dir::Cache "$work/apt";
Dir::Etc::sourcelist "$work/apt/sources.list";
Dir::Etc::sourceparts "/dev/null";
Dir::Etc::preferencesparts "/dev/null";
APT::Sandbox::User "";
APT::Install-Recommends "false";
APT::Update::Error-Mode "any";
Acquire::Languages "none";
#clear APT::Update::Post-Invoke;
#clear DPkg::Post-Invoke;
END
apt-get -c apt/apt.conf -qq update
for package in "${packages[@]}"; do
    found=$(apt-cache -c apt/apt.conf madison "${package%%=*}" | awk '{ print $3 }' | xargs)
    if [[ " $found " != *" ${package#*=} "* ]]; then
        echo "OTHER VERSION: this script is for $package, the archive has ${found:-none}" >&2
        exit 2
    fi
done
apt-get -c apt/apt.conf -qq -y -t trixie-backports --download-only install "${packages[@]}" >/dev/null
mkdir -p root/usr/{bin,sbin,lib,lib64}
ln -s usr/{bin,sbin,lib,lib64} root/
for package in apt/archives/*.deb; do
    dpkg-deb -x "$package" root
done

cat >qemu <<END
#!/bin/sh
exec "$work/root/usr/lib64/ld-linux-x86-64.so.2" --library-path "$work/root/usr/lib/x86_64-linux-gnu" \\
    "$work/root/usr/bin/qemu-system-aarch64" -L "$work/root/usr/share/qemu" "\$@"
END
chmod +x qemu
export QEMU_MODULE_DIR=$work/root/usr/lib/x86_64-linux-gnu/qemu
version=$(./qemu --version | sed -n 's/^QEMU emulator version //p')
echo "QEMU: $version"

cat >finding.py <<'END'
import os
import socket
import struct
import subprocess


class Machine:
    """A machine that runs no code of its own: its processor's accesses are commands of the qtest protocol."""

    def __init__(self, *arguments):
        listener = socket.create_server("qtest", family=socket.AF_UNIX)
        command = ["./qemu", "-nodefaults", "-display", "none", "-accel", "qtest", "-qtest-log", "none"]
        self._process = subprocess.Popen([*command, "-qtest", "unix:qtest", *arguments])
        self._qtest = listener.accept()[0].makefile("rw")
        os.remove("qtest")

    def ask(self, line):
        print(line, file=self._qtest, flush=True)
        while (answer := self._qtest.readline().split())[0] == "IRQ":
            pass
        assert answer[0] == "OK", (line, answer)
        return answer[1:]

    def word(self, address):
        return int(self.ask(f"readl {address:#x}")[0], 16)

    def select(self, key):
        # The selector is big-endian, the machine little-endian.
        self.ask(f"writew {FW_CFG + 8:#x} {key << 8 & 0xFF00 | key >> 8:#x}")

    def take(self, count):
        """The next bytes of what is selected."""
        return bytes(int(self.ask(f"readb {FW_CFG:#x}")[0], 16) for _ in range(count))

    def file(self, name):
        """A file that QEMU has for the firmware."""
        self.select(0x19)
        (count,) = struct.unpack(">I", self.take(4))
        for _ in range(count):
            size, key, _, this = struct.unpack(">IHH56s", self.take(64))
            if this.rstrip(b"\0").decode() == name:
                self.select(key)
                return self.take(size)
        raise LookupError(name)

    def end(self):
        self._process.terminate()
        self._process.wait()


# Of the virt machine.
FW_CFG, SMMU = 0x9020000, 0x9050000
ROOT_COMPLEX = 2


def root_complexes(tables):
    """The flags of memory accesses of each root complex in the IORT."""
    at = tables.index(b"IORT")
    (length,) = struct.unpack_from("<I", tables, at + 4)
    iort = tables[at : at + length]
    count, node = struct.unpack_from("<2I", iort, 36)
    for _ in range(count):
        kind, size = struct.unpack_from("<BH", iort, node)
        if kind == ROOT_COMPLEX:
            yield iort[node + 23]
        node += size


for stage in ("1", "nested"):
    machine = Machine("-M", "virt,gic-version=3,iommu=smmuv3", "-global", f"arm-smmuv3.stage={stage}", "-m", "128")
    idr0, idr3 = machine.word(SMMU), machine.word(SMMU + 0xC)
    stages = f"stage 1: {idr0 >> 1 & 1}, stage 2: {idr0 & 1}, forced write-back: {idr3 >> 8 & 1}"
    for flags in root_complexes(machine.file("etc/acpi/tables")):
        coherent = f"CPM: {flags & 1}, DACS: {flags >> 1 & 1}, CANWBS: {flags >> 2 & 1}"
        print(f"stage={stage}: {stages}; root complex: {coherent}")
    machine.end()
END

cat >expected <<'END'
stage=1: stage 1: 1, stage 2: 1, forced write-back: 0; root complex: CPM: 1, DACS: 1, CANWBS: 0
stage=nested: stage 1: 1, stage 2: 1, forced write-back: 0; root complex: CPM: 1, DACS: 1, CANWBS: 0
END

timeout 300 python3 finding.py >seen
if ! diff expected seen; then
    echo "CHANGED: the machine says something else of stages or of coherent caches" >&2
    exit 1
fi
echo "As described with QEMU $version: both stages, and no promise that lets Linux nest them"
