#!/bin/bash
# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
#
# Software:  PyPI avocado-framework 113.0, with Python's unittest
# Behaviour: A test marked with unittest.expectedFailure that passes is an unexpected success, which makes a run of unittest fail:
#            the mark is out of date. avocado counts it as PASS and ends with status 0, as it does for one that fails as expected.
#            What a project has marked is never unmarked there.
# Seen:      Two marked tests, one fails and one passes: python3 -m unittest "FAILED (expected failures=1, unexpected successes=1)",
#            status 1; avocado PASS 2, status 0.
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
