#!/bin/bash
# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
#
# Software:  QEMU 11.1.3 (Debian 1:11.1.3+ds-1~bpo13+1, trixie-backports), vhost-user-test-device-pci
# Behaviour: The generic vhost-user device has a configuration only if its option config_size gives the size; the default is 0.
#            Without the option QEMU starts, does not negotiate the protocol feature CONFIG, and never asks the back-end for its
#            configuration. The guest reads all ones from the configuration. QEMU prints a warning, which does not name the
#            option: "vhost-user backend supports VHOST_USER_PROTOCOL_F_CONFIG but QEMU does not".
# Seen:      The back-end offers CONFIG, and its configuration begins with 00 01 02 03. With config_size=40 the guest reads these
#            bytes. Without the option it reads ff ff ff ff, and QEMU prints the warning.
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
import os
import select
import socket
import struct
import subprocess
import threading


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

    def end(self):
        self.qmp("quit")
        self._process.wait()


class Backend(threading.Thread):
    """A vhost-user back-end that answers, and keeps the names and contents of what it got."""

    NAMES = {
        1: "GET_FEATURES", 2: "SET_FEATURES", 3: "SET_OWNER", 5: "SET_MEM_TABLE", 8: "SET_VRING_NUM",
        9: "SET_VRING_ADDR", 10: "SET_VRING_BASE", 11: "GET_VRING_BASE", 12: "SET_VRING_KICK", 13: "SET_VRING_CALL",
        14: "SET_VRING_ERR", 15: "GET_PROTOCOL_FEATURES", 16: "SET_PROTOCOL_FEATURES", 17: "GET_QUEUE_NUM",
        18: "SET_VRING_ENABLE", 24: "GET_CONFIG", 25: "SET_CONFIG", 34: "RESET_DEVICE",
    }  # fmt: skip
    # Multiqueue, REPLY_ACK, CONFIG, RESET_DEVICE.
    PROTOCOL = 1 << 0 | 1 << 3 | 1 << 9 | 1 << 13

    def __init__(self, path):
        super().__init__(daemon=True)
        self._listener = socket.create_server(path, family=socket.AF_UNIX)
        self._messages = []
        self._bases = {}
        self._lock = threading.Lock()
        self.config = bytes(range(CONFIG_SIZE))
        self.start()

    def run(self):
        self._connection, _ = self._listener.accept()
        while True:
            select.select([self._connection], [], [])
            with self._lock:
                if not self._serve():
                    return

    def _serve(self):
        head, descriptors, _, _ = socket.recv_fds(self._connection, 12, 16)
        for descriptor in descriptors:
            os.close(descriptor)
        if not head:
            return False
        kind, flags, size = struct.unpack("<3I", head)
        body = b""
        while len(body) < size:
            body += self._connection.recv(size - len(body))
        self._messages.append((self.NAMES.get(kind, str(kind)), body))
        reply = self._reply(kind, flags, body)
        if reply is not None:
            self._connection.sendall(struct.pack("<3I", kind, 5, len(reply)) + reply)
        return True

    def _reply(self, kind, flags, body):
        values = {1: 1 << 32 | 1 << 30, 15: self.PROTOCOL, 17: 2}
        if kind in values:
            return struct.pack("<Q", values[kind])
        if kind == 10:
            queue, self._bases[body[0]] = struct.unpack("<2I", body)
        if kind == 11:
            return struct.pack("<2I", body[0], self._bases.get(body[0], 0))
        if kind == 24:
            offset, size, _ = struct.unpack("<3I", body[:12])
            return body[:12] + self.config[offset : offset + size]
        return struct.pack("<Q", 0) if flags & 8 else None

    def take(self):
        """What came since the last time. QEMU has sent its messages when an access of the machine returns."""
        while True:
            with self._lock:
                if not select.select([self._connection], [], [], 0)[0]:
                    messages, self._messages = self._messages, []
                    return messages


CONFIG, CONFIG_SIZE = 0xE0002000, 40


def show(name, option):
    backend = Backend("vhost-user")
    machine = Machine(
        "-m", "128", "-chardev", "socket,id=c,path=vhost-user", "-device",
        f"vhost-user-test-device-pci,chardev=c,virtio-id=23,num_vqs=2{option},addr=4",
    )  # fmt: skip
    machine.configure(4, 0x18, CONFIG & ~0xFFFF)
    machine.configure(4, 0x04, 6)  # memory, bus master
    read = bytes(machine.read(1, CONFIG + at) for at in range(4))
    messages = backend.take()
    (features,) = (struct.unpack("<Q", body)[0] for name, body in messages if name == "SET_PROTOCOL_FEATURES")
    negotiated, asked = bool(features & 1 << 9), "GET_CONFIG" in dict(messages)
    print(f"{name}: CONFIG negotiated: {negotiated}, GET_CONFIG: {asked}, read: {read.hex(' ')}")
    machine.end()
    for path in ("vhost-user", "qtest", "qmp"):
        os.remove(path)


show("config_size=40", f",config_size={CONFIG_SIZE}")
show("no config_size", "")
END

cat >expected <<'END'
config_size=40: CONFIG negotiated: True, GET_CONFIG: True, read: 00 01 02 03
no config_size: CONFIG negotiated: False, GET_CONFIG: False, read: ff ff ff ff
warning: vhost-user backend supports VHOST_USER_PROTOCOL_F_CONFIG but QEMU does not.
END

timeout 120 python3 finding.py >seen 2>errors || { cat errors >&2; exit 2; }
grep -o 'warning: .*' errors >>seen || true
if ! diff expected seen; then
    echo "CHANGED: the generic device has a configuration without config_size, or another warning" >&2
    exit 1
fi
echo "As described with QEMU $version: without config_size the guest reads all ones"
