#!/bin/bash
# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
#
# Software:  QEMU 11.1.3 (Debian 1:11.1.3+ds-1~bpo13+1, trixie-backports), vfio-user-pci
# Behaviour: The socket of vfio-user-pci can only be given in JSON. -blockdev, -netdev and other options also take such an address
#            in dotted form. -device refuses the dotted form, with a message about a missing property.
# Seen:      -device vfio-user-pci,socket.type=unix,socket.path=P: "Property 'vfio-user-pci.socket.type' not found". With the same
#            address as JSON, QEMU connects to P.
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

start() {
    timeout 60 ./qemu -M q35 -nodefaults -display none -S -device "$1" 2>&1 | grep -o "Property '.*\|Failed to connect to .*"
}
cat >expected <<'END'
dotted: Property 'vfio-user-pci.socket.type' not found
JSON: Failed to connect to 'nobody': No such file or directory
END
{
    echo "dotted: $(start vfio-user-pci,socket.type=unix,socket.path=nobody)"
    echo "JSON: $(start '{"driver":"vfio-user-pci","socket":{"type":"unix","path":"nobody"}}')"
} >seen
if ! diff expected seen; then
    echo "CHANGED: vfio-user-pci takes its socket in another form" >&2
    exit 1
fi
echo "As described with QEMU $version: the socket can be given in JSON only"
