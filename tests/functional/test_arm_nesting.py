# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""Linux for Arm as a host: its SMMUv3 translates a device by a table of a guest, and by the host's. No guest is started in
it: tests/arm_suite plays one, and this starts it.

QEMU's SMMUv3 is the one emulated IOMMU that walks two tables. The kernel is patched for it (guest/kernel/arm-nesting.patch).
"""

import pathlib

from bases.testcase import FunctionalTest
from lab_kit.vm import lab
from lab_kit.vm.arm import NestingMachine

SECONDS = 300


class ArmNestingTest(FunctionalTest):
    """The suite for Arm, in one machine."""

    kernel = staticmethod(lab.arm_nesting_kernel)
    machine_type = NestingMachine
    processors = 2
    # What is tested is in the machine.
    backend = staticmethod(lambda: pathlib.Path("/bin/true"))

    def test_the_suite_passes_on_an_smmuv3(self):
        try:
            suite = lab.arm_suite()
        except lab.Missing as missing:
            self.skipTest(str(missing))
        program = self.directory / "suite"
        program.symlink_to(suite)
        machine = self.start_machine(None, programs=(program,))
        said: list[str] = []
        status = machine.guest.follow("run /suite --test-threads=1 --color=never", said.append, SECONDS)
        report = "\n".join(said)
        self.assertEqual(status, "0", report)
        # It has not passed for want of tests.
        self.assertRegex(report, r"(?m)^test result: ok\. [1-9]\d* passed; 0 failed; 0 ignored", report)


if __name__ == "__main__":
    FunctionalTest.main()
