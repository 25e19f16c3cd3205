# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""Tests with Linux guests: see docs/testing.md.

Tests import each other and `bases` as modules of this directory, which `python3 -m unittest tests.functional.test_dma`
finds only when it is told.
"""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
