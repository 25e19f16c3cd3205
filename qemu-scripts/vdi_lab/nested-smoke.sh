#!/bin/sh
# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
# Runs in the lab kernel behind an emulated IOMMU and prints libtest's lines: is there what the nested tests need? Then
# runs the test programs that it is given.
passed=0 failed=0
check() {
    name=$1
    shift
    if "$@"; then result=ok passed=$((passed + 1)); else result=FAILED failed=$((failed + 1)); fi
    echo "test nested::$name ... $result"
}
edu=
for device in /sys/bus/pci/devices/*; do
    if [ "$(cat "$device/vendor"):$(cat "$device/device")" = 0x1234:0x11e8 ]; then edu=$device; fi
done
# The test programs find it bound.
echo vfio-pci >"$edu/driver_override"
echo "${edu##*/}" >/sys/bus/pci/drivers/vfio-pci/bind
check machine_has_an_iommu test -e /sys/class/iommu/dmar0
check edu_is_behind_the_iommu test -e "$edu/iommu_group"
check edu_binds_to_vfio_pci test -e "/sys/bus/pci/drivers/vfio-pci/${edu##*/}"
check edu_has_a_vfio_device test -c /dev/vfio/devices/vfio0
check iommufd_is_there test -c /dev/iommu
echo "test result: $([ $failed = 0 ] && echo ok || echo FAILED). $passed passed; $failed failed; nested smoke"
status=$failed
for suite; do "$suite" --test-threads=1 --color=never || status=1; done
exit $status
