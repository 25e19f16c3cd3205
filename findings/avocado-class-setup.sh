#!/bin/bash
# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
#
# Software:  PyPI avocado-framework 113.0, with Python's unittest
# Behaviour: avocado runs each test method of a unittest class in a process of its own. Each of these processes calls the class's
#            setUpClass() and tearDownClass(). So a machine that a class boots for all its tests is booted once for each test.
#            Tests run in parallel, so several of these machines run at the same time.
# Seen:      A class has three tests. avocado calls setUpClass() three times, in three processes. python3 -m unittest calls it
#            once.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"

python3 -m pip install --quiet --root-user-action=ignore --target site avocado-framework==113.0
export PYTHONPATH=$work/site PATH=$work/site/bin:$PATH HOME=$work

cat >test_finding.py <<'END'
import os
import unittest


class Finding(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        with open("record", "a") as record:
            print(os.getpid(), file=record)

    def test_one(self):
        pass

    def test_two(self):
        pass

    def test_three(self):
        pass
END
cat >expected <<'END'
unittest: 1 set-up(s), 1 process(es)
avocado: 3 set-up(s), 3 process(es)
avocado: PASS 3 | ERROR 0 | FAIL 0 | SKIP 0
END
count() {
    echo "$1: $(wc -l <record) set-up(s), $(sort -u record | wc -l) process(es)"
    rm record
}
{
    python3 -m unittest -q test_finding 2>unittest.log
    count unittest
    timeout 120 python3 -m avocado run test_finding.py >avocado.log
    count avocado
    sed -n 's/^RESULTS *: \(.* SKIP [0-9]*\).*/avocado: \1/p' avocado.log
} >seen
if ! diff expected seen; then
    echo "CHANGED: avocado sets a class up as often as unittest does" >&2
    exit 1
fi
echo "As described: a class is set up for each of its tests"
