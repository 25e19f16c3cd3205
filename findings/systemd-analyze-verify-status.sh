#!/bin/bash
# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
#
# Software:  systemd 252 (Debian 12: 252.39-1~deb12u2), systemd-analyze verify
# Behaviour: If a unit has a key that systemd does not know, verify prints a line with "ignoring" to standard error and ends with
#            status 0. The key may be misspelt, or of a later version; the setting takes no effect. So a script that looks at the
#            status misses a hardening option that is not in force. With --recursive-errors=yes the status is 1.
# Seen:      ProtectSytem=strict (for ProtectSystem): "Unknown key 'ProtectSytem' in section [Service], ignoring.", status 0.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"

# systemd and what it depends on, of exactly these versions, from the archive that this machine uses. They are unpacked and not
# installed: apt has a state of its own here.
packages=(systemd=252.39-1~deb12u2)
mirror=$(apt-get indextargets --format '$(COMPONENT) $(REPO_URI)' 'Created-By: Packages' 'Codename: bookworm' |
    awk '$1 == "main" { print $2; exit }')
[ -n "$mirror" ] || { echo "apt's configuration has no archive of Debian 12" >&2; exit 2; }
mkdir -p apt/lists/partial apt/archives/partial root
touch apt/status
for suite in bookworm; do
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
apt-get -c apt/apt.conf -qq -y --download-only install "${packages[@]}" >/dev/null
for package in apt/archives/*.deb; do
    dpkg-deb -x "$package" root
done

analyze() {
    "$work"/root/lib64/ld-linux-x86-64.so.2 --library-path "$(echo root/{lib,usr/lib}/x86_64-linux-gnu{,/systemd} | tr ' ' :)" \
        root/usr/bin/systemd-analyze "$@"
}
version=$(analyze --version | sed -n '1s/.*(\(.*\))/\1/p')
echo "systemd: $version"
cat >finding.service <<'END'
[Unit]
Description=Finding

[Service]
ExecStart=/bin/true
ProtectSytem=strict
END
cat >expected <<'END'
Unknown key 'ProtectSytem' in section [Service], ignoring.
verify: status 0
Unknown key 'ProtectSytem' in section [Service], ignoring.
verify --recursive-errors=yes: status 1
END
check() {
    status=0
    analyze "$@" ./finding.service 2>log || status=$?
    grep -o 'Unknown key.*' log
    echo "$*: status $status"
}
{
    check verify
    check verify --recursive-errors=yes
} >seen
if ! diff expected seen; then
    echo "CHANGED: verify treats an unknown key in another way" >&2
    exit 1
fi
echo "As described with systemd $version: an unknown key passes verify"
