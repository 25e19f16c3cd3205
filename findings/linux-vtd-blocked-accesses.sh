#!/bin/bash
# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
#
# Software:  Linux 7.3.4 (Debian 7.3.4-1~bpo13+1, trixie-backports, linux-binary-7.3.4+deb13-amd64), Intel IOMMU driver,
#            in QEMU 11.1.3 with intel-iommu
# Behaviour: When an IOMMU blocks an access, the kernel can raise the trace event iommu:io_page_fault. The Intel driver does not
#            raise it. The Intel driver writes a line to the kernel's log, and the kernel limits these lines to a few in five
#            seconds, for all devices together. So most blocked accesses leave neither a line nor an event.
# Seen:      The event is enabled, and a device makes 40 accesses to addresses that are not mapped, in about 5 seconds. The log
#            has 6 lines and "dmar_fault: 74 callbacks suppressed". There is no event.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"

# QEMU, a kernel and what they depend on, of exactly these versions, from the archive that this machine uses. They are unpacked
# and not installed: apt has a state of its own here.
kernel=linux-binary-7.3.4+deb13-amd64
packages=(qemu-system-x86=1:11.1.3+ds-1~bpo13+1 busybox-static=1:1.37.0-6+b9 "$kernel=7.3.4-1~bpo13+1")
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

mkdir -p initramfs/{bin,sbin,usr/bin,usr/sbin,dev,proc,sys}
cp root/usr/bin/busybox initramfs/bin/
cat >initramfs/init <<'END'
#!/bin/busybox sh
/bin/busybox --install -s
export PATH=/bin:/sbin:/usr/bin:/usr/sbin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
exec >/dev/console 2>&1
mount -t tracefs tracefs /sys/kernel/tracing
event=/sys/kernel/tracing/events/iommu/io_page_fault/enable
echo 1 >$event

# The device has a DMA engine and no driver: its domain is empty. Its first registers for DMA: from where, where to, how much, go.
device=/sys/bus/pci/devices/0000:00:05.0
echo 1 >$device/enable
printf '\006' | dd of=$device/config bs=1 seek=4 conv=notrunc 2>/dev/null
bar=$(head -n 1 $device/resource | cut -d ' ' -f 1)
register() { devmem $((bar + $1)) 64 $2; }
for access in $(seq 40); do
    register 0x80 0x1000000
    register 0x88 0x40000
    register 0x90 4
    register 0x98 1
    until [ "$(($(register 0x98) & 1))" = 0 ]; do :; done
done
lines=$(dmesg | grep -c 'DMAR: \[DMA Read')
echo "FINDING domain of type $(cat $device/iommu_group/type)"
echo "FINDING io_page_fault enabled $(cat $event), events $(grep -c io_page_fault: /sys/kernel/tracing/trace)"
[ $lines -gt 0 ] && [ $lines -lt 20 ] && few=true || few=false
echo "FINDING 40 accesses, lines in the log between 1 and 19: $few ($lines)"
poweroff -f
END
chmod +x initramfs/init
python3 - <<'END'
"""The files as a cpio archive in newc format."""
import pathlib
import stat

root = pathlib.Path("initramfs")


def entry(name, mode, data=b""):
    fields = [1, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name) + 1, 0]
    head = b"070701" + b"".join(b"%08x" % field for field in fields) + name.encode() + b"\0"
    return head + bytes(-len(head) % 4) + data + bytes(-len(data) % 4)


archive = b""
for path in sorted(root.rglob("*")):
    mode = path.lstat().st_mode
    archive += entry(str(path.relative_to(root)), mode, path.read_bytes() if stat.S_ISREG(mode) else b"")
pathlib.Path("initramfs.cpio").write_bytes(archive + entry("TRAILER!!!", 0))
END

timeout 300 ./qemu -M q35 -cpu max -m 512 -nodefaults -display none -serial stdio -no-reboot -accel tcg \
    -kernel root/usr/lib/modules/*/vmlinuz -initrd initramfs.cpio -append "console=ttyS0 quiet intel_iommu=on panic=-1 no_timer_check" \
    -device intel-iommu -device edu,addr=5 >console 2>/dev/null </dev/null || true
tr -d '\r' <console | sed -n 's/^FINDING //p' >lines
sed 's/ ([0-9]*)$//' lines >seen
cat lines
cat >expected <<'END'
domain of type DMA-FQ
io_page_fault enabled 1, events 0
40 accesses, lines in the log between 1 and 19: true
END
if ! diff expected seen; then
    echo "CHANGED: the Intel driver reports blocked accesses in another way" >&2
    exit 1
fi
echo "As described, $kernel, QEMU $version: most blocked accesses leave no trace"
