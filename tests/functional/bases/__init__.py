# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""The base classes of the functional tests, which stand on the lab.

`testcase` starts back-ends and machines, and checks what they leave behind; `paging` takes page requests in the guest;
`engine` adds a software function, and `process` has one work on the memory of a process. Importing this package makes
`lab_kit` importable, so tests import it first.
"""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[3] / "qemu-scripts"))
