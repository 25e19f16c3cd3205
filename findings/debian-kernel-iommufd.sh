#!/bin/bash
# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
#
# Software:  Debian's packaged kernels for amd64: 6.12.117-1 (trixie) and 7.3.4-1~bpo13+1 (trixie-backports),
#            configuration in linux-config-*
# Behaviour: These kernels are built without iommufd, and so without VFIO's character devices. No module adds them: /dev/iommu and
#            /dev/vfio/devices/vfioN do not exist on any machine. VFIO is there with groups and containers, which have no page
#            requests, no PASIDs and no nesting. The iommufd options of a VMM fail on a stock Debian host.
# Seen:      Every flavour of both kernels has "# CONFIG_IOMMUFD is not set" and CONFIG_VFIO_GROUP=y, and no
#            CONFIG_VFIO_DEVICE_CDEV.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"

# The configurations of two kernels, of exactly these versions, from the archive that this machine uses. They are unpacked and not
# installed: apt has a state of its own here.
packages=(linux-config-6.12=6.12.117-1 linux-config-7.3=7.3.4-1~bpo13+1)
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
(cd apt/archives && apt-get -c ../apt.conf -qq download "${packages[@]}")
for package in apt/archives/*.deb; do
    dpkg-deb -x "$package" root
done

for package in apt/archives/*.deb; do
    dpkg-deb --show --showformat '${Package} ${Version}\n' "$package"
done
cat >expected <<'END'
6.12: 3 flavours, 0 with iommufd, 0 with VFIO devices, 3 with VFIO groups
7.3: 3 flavours, 0 with iommufd, 0 with VFIO devices, 3 with VFIO groups
END
for version in 6.12 7.3; do
    mkdir "$version"
    for file in root/usr/src/linux-config-$version/config.amd64*.xz; do
        python3 -c 'import lzma, sys; sys.stdout.buffer.write(lzma.open(sys.argv[1]).read())' "$file" >"$version/${file##*/}"
    done
    with() { { grep -l "^$1=[ym]" "$version"/* || true; } | wc -l; }
    echo "$version: $(find "$version" -type f | wc -l) flavours, $(with CONFIG_IOMMUFD) with iommufd," \
        "$(with CONFIG_VFIO_DEVICE_CDEV) with VFIO devices, $(with CONFIG_VFIO_GROUP) with VFIO groups"
done >seen
if ! diff expected seen; then
    echo "CHANGED: a packaged kernel has iommufd, or VFIO in another form" >&2
    exit 1
fi
echo "As described: no packaged kernel has iommufd"
