# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""Tests with Linux guests: see docs/testing.md.

Tests import each other and `bases` as modules of this directory. This file puts the directory on Python's path, which
`python3 -m unittest tests.functional.test_dma` needs.
"""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
