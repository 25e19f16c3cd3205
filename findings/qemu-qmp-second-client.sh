#!/bin/bash
# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
#
# Software:  QEMU 11.1.3 (Debian 1:11.1.3+ds-1~bpo13+1, trixie-backports), -qmp unix:PATH,server=on,wait=off
# Behaviour: A QMP socket has one client at a time. QEMU does not refuse a second client: its connect() succeeds. Then QEMU sends
#            it nothing, neither a greeting nor an end of file, until the first client leaves. After that QEMU serves the second
#            client as usual. So a client needs a time limit for the greeting, and a monitor that no other client uses.
# Seen:      The first client asks ten times and is answered ten times. All that time the second client has no greeting. It has
#            one when the first has closed its connection.
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
import subprocess
import time


class Client:
    def __init__(self):
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.connect("qmp")
        self._lines = self._socket.makefile("rw")

    def silent(self):
        return not select.select([self._socket], [], [], 0)[0]

    def greeting(self):
        return "greeted" if "QMP" in json.loads(self._lines.readline()) else "not greeted"

    def ask(self, command):
        print(json.dumps({"execute": command}), file=self._lines, flush=True)
        while "return" not in json.loads(self._lines.readline()):
            pass

    def close(self):
        self._lines.close()
        self._socket.close()


process = subprocess.Popen(
    ["./qemu", "-M", "q35", "-nodefaults", "-display", "none", "-S", "-qmp", "unix:qmp,server=on,wait=off"]
)
while not os.path.exists("qmp"):
    time.sleep(0.05)
first = Client()
print("first:", first.greeting())
second = Client()
print("second: connected,", "nothing to read" if second.silent() else "something to read")
first.ask("qmp_capabilities")
for _ in range(10):
    first.ask("query-status")
print("first: answered 10 times")
print("second:", "nothing to read" if second.silent() else "something to read")
first.close()
print("first: closed")
print("second:", second.greeting())
second.ask("qmp_capabilities")
second.ask("quit")
process.wait()
END

cat >expected <<'END'
first: greeted
second: connected, nothing to read
first: answered 10 times
second: nothing to read
first: closed
second: greeted
END

timeout 120 python3 finding.py >seen
if ! diff expected seen; then
    echo "CHANGED: QEMU treats a second client of a QMP socket in another way" >&2
    exit 1
fi
echo "As described with QEMU $version: a second client connects and is not greeted"
