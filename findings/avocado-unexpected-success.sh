#!/bin/bash
# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
#
# Software:  PyPI avocado-framework 113.0, with Python's unittest
# Behaviour: If a test that is marked with unittest.expectedFailure passes, the mark is out of date. unittest calls this an
#            unexpected success and fails the run. avocado counts the test as PASS and ends with status 0, the same as for a test
#            that fails as expected. So a project that runs avocado alone never learns that a mark is out of date.
# Seen:      Of two marked tests, one fails and one passes. python3 -m unittest says "FAILED (expected failures=1, unexpected
#            successes=1)" and ends with status 1. avocado says PASS 2 and ends with status 0.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"

python3 -m pip install --quiet --root-user-action=ignore --target site avocado-framework==113.0
export PYTHONPATH=$work/site PATH=$work/site/bin:$PATH HOME=$work

cat >test_finding.py <<'END'
import unittest


class Finding(unittest.TestCase):
    @unittest.expectedFailure
    def test_fails(self):
        self.fail()

    @unittest.expectedFailure
    def test_passes(self):
        pass
END
cat >expected <<'END'
FAILED (expected failures=1, unexpected successes=1)
unittest: status 1
PASS 2 | ERROR 0 | FAIL 0 | SKIP 0
avocado: status 0
END
{
    status=0
    python3 -m unittest -q test_finding 2>unittest.log || status=$?
    grep '^FAILED' unittest.log
    echo "unittest: status $status"
    status=0
    timeout 120 python3 -m avocado run test_finding.py >avocado.log || status=$?
    sed -n 's/^RESULTS *: \(.* SKIP [0-9]*\).*/\1/p' avocado.log
    echo "avocado: status $status"
} >seen
if ! diff expected seen; then
    echo "CHANGED: avocado no longer counts an unexpected success as a success" >&2
    exit 1
fi
echo "As described: an unexpected success passes"
