# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""What the tests of the lab have in common. Importing this makes `lab_kit` importable."""

import contextlib
import io
import os
import pathlib
import sys
from collections.abc import Iterator

SCRIPTS = pathlib.Path(__file__).resolve().parents[2] / "qemu-scripts"
sys.path.insert(0, str(SCRIPTS))

from lab_kit import classes  # noqa: E402
from lab_kit.suites import FUNCTIONAL, NESTED  # noqa: E402
from lab_kit.tally import Tally  # noqa: E402


def functional_classes() -> list[classes.TestClass]:
    """The classes of the functional tests that there are."""
    return _classes("guest", FUNCTIONAL)


def nested_classes() -> list[classes.TestClass]:
    """The classes of the nested tests that there are."""
    return _classes("nested", NESTED)


def _classes(suite: str, directory: pathlib.Path) -> list[classes.TestClass]:
    environment = {**os.environ, "PYTHONPATH": f"{SCRIPTS}:{FUNCTIONAL}", "PYTHONDONTWRITEBYTECODE": "1"}
    return classes.find(suite, directory, environment)


@contextlib.contextmanager
def shown() -> Iterator[io.StringIO]:
    """What is printed meanwhile."""
    with contextlib.redirect_stdout(io.StringIO()) as output:
        yield output


def counts(tally: Tally) -> tuple[int, int]:
    return tally.passed, tally.failed
