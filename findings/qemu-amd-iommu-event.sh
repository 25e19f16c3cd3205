#!/bin/bash
# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
#
# Software:  QEMU 11.1.3 (Debian 1:11.1.3+ds-1~bpo13+1, trixie-backports), device amd-iommu with dma-remap=on
# Behaviour: When the emulated AMD IOMMU blocks an access, it writes an event into its log. The address and the domain in the
#            event are 0. The flags describe the access in the wrong bits: GN is set for a read and NX for a write. I, which
#            stands for interrupts, is set too. RW is clear for both. A guest's driver cannot find out from this where the device
#            went wrong.
# Seen:      A device with ID 0x28 is in domain 5, whose page table is empty. It reads 4 bytes at 0x1234000, and writes there. The
#            IOMMU blocks both accesses. Its log has two events of type 2 (IO_PAGE_FAULT) with domain 0, address 0, and flags
#            0x009 and 0x00a.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"

# QEMU and what it depends on, of exactly these versions, from the archive that this machine uses. They are unpacked and not
# installed: apt has a state of its own here.
packages=(qemu-system-x86=1:11.1.3+ds-1~bpo13+1)
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
    "$work/root/usr/bin/qemu-system-x86_64" -L "$work/root/usr/share/qemu" -L "$work/root/usr/share/seabios" "\$@"
END
chmod +x qemu
export QEMU_MODULE_DIR=$work/root/usr/lib/x86_64-linux-gnu/qemu
version=$(./qemu --version | sed -n 's/^QEMU emulator version //p')
echo "QEMU: $version"

cat >finding.py <<'END'
import json
import socket
import struct
import subprocess


class Machine:
    """A machine that runs no code of its own: its processor's accesses are commands of the qtest protocol."""

    def __init__(self, *arguments):
        listeners = {name: socket.create_server(name, family=socket.AF_UNIX) for name in ("qtest", "qmp")}
        command = ["./qemu", "-M", "q35", "-nodefaults", "-display", "none", "-accel", "qtest", "-qtest-log", "none"]
        command += ["-qtest", "unix:qtest", "-qmp", "unix:qmp", *arguments]
        self._process = subprocess.Popen(command)
        self._qtest, self._qmp = (listener.accept()[0].makefile("rw") for listener in listeners.values())
        self._qmp.readline()
        self.qmp("qmp_capabilities")

    def qmp(self, command):
        print(json.dumps({"execute": command}), file=self._qmp, flush=True)
        while "return" not in json.loads(self._qmp.readline()):
            pass

    def ask(self, line):
        print(line, file=self._qtest, flush=True)
        while (answer := self._qtest.readline().split())[0] == "IRQ":
            pass
        assert answer[0] == "OK", (line, answer)
        return answer[1:]

    def read(self, size, address):
        return int(self.ask(f"read{'_bw_l___q'[size]} {address:#x}")[0], 16)

    def write(self, size, address, value):
        self.ask(f"write{'_bw_l___q'[size]} {address:#x} {value:#x}")

    def configure(self, slot, offset, value):
        """A write to the configuration space of a device on bus 0."""
        self.ask(f"outl 0xcf8 {0x80000000 | slot << 11 | offset:#x}")
        self.ask(f"outl 0xcfc {value:#x}")

    def store(self, address, content):
        self.ask(f"write {address:#x} {len(content):#x} 0x{content.hex()}")

    def load(self, address, size):
        return bytes.fromhex(self.ask(f"read {address:#x} {size:#x}")[0][2:])

    def end(self):
        self.qmp("quit")
        self._process.wait()


SLOT = 5
DEVICE = SLOT << 3
DOMAIN = 5
IOMMU, EDU = 0xFED80000, 0xE0000000
DEVICES, COMMANDS, EVENTS, PAGES = 0x100000, 0x300000, 0x310000, 0x400000

machine = Machine("-m", "128", "-device", "amd-iommu,dma-remap=on", "-device", f"edu,addr={SLOT}")
machine.configure(SLOT, 0x10, EDU)
machine.configure(SLOT, 0x04, 6)  # memory, bus master

# The device's entry: valid, an empty table of three levels, reads and writes allowed.
machine.store(DEVICES + DEVICE * 32, struct.pack("<4Q", 3 << 61 | PAGES | 3 << 9 | 3, DOMAIN, 0, 0))
machine.write(8, IOMMU + 0x00, DEVICES | 511)
machine.write(8, IOMMU + 0x08, COMMANDS | 8 << 56)
machine.write(8, IOMMU + 0x10, EVENTS | 8 << 56)
machine.write(8, IOMMU + 0x18, 1 | 1 << 2 | 1 << 12)  # IOMMU, event log, command buffer
machine.store(COMMANDS, struct.pack("<4I", DEVICE, 2 << 28, 0, 0))  # INVALIDATE_DEVTAB_ENTRY
machine.write(8, IOMMU + 0x2008, 16)

# The device's DMA: from guest memory into its buffer, and back.
for source, destination, command in ((0x1234000, 0x40000, 1), (0x40000, 0x1234000, 3)):
    machine.write(8, EDU + 0x80, source)
    machine.write(8, EDU + 0x88, destination)
    machine.write(8, EDU + 0x90, 4)
    machine.write(8, EDU + 0x98, command)
    machine.ask("clock_step 200000000")

for at in range(0, machine.read(8, IOMMU + 0x2018), 16):
    device, event, low, high = struct.unpack("<4I", machine.load(EVENTS + at, 16))
    print(
        f"event {event >> 28}, device {device & 0xFFFF:#x}, domain {event & 0xFFFF}, "
        f"flags {event >> 16 & 0xFFF:#05x}, address {high << 32 | low:#x}"
    )
machine.end()
END

cat >expected <<'END'
event 2, device 0x28, domain 0, flags 0x009, address 0x0
event 2, device 0x28, domain 0, flags 0x00a, address 0x0
END

timeout 120 python3 finding.py >seen
if ! diff expected seen; then
    echo "CHANGED: events of the emulated AMD IOMMU have other contents" >&2
    exit 1
fi
echo "As described with QEMU $version: events of blocked accesses have no address"
