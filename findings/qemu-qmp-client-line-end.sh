#!/bin/bash
# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
#
# Software:  PyPI qemu.qmp 0.0.6
# Behaviour: The client sends a command without a line end, and waits for the answer. QEMU reads JSON objects and needs no line
#            end. A server that reads lines waits for the rest for ever. Such a server looks right: QEMU's own answers are lines,
#            and so are most printed examples of QMP.
# Seen:      connect() to a server that only looks at bytes: the client sends {"execute":"qmp_capabilities","arguments":{}} and no
#            line end.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"

python3 -m pip install --quiet --root-user-action=ignore --target site qemu.qmp==0.0.6
export PYTHONPATH=$work/site

cat >finding.py <<'END'
import asyncio

from qemu.qmp import QMPClient


async def main():
    received = bytearray()

    async def serve(reader, writer):
        writer.write(b'{"QMP":{"version":{},"capabilities":[]}}\n')
        while not received.endswith(b"}}"):
            received.extend(await reader.read(4096))
        # A line end would be part of the same send, or come before anything else is sent.
        writer.write(b'{"return":{}}\n')
        received.extend(await reader.read(4096))
        writer.close()

    server = await asyncio.start_unix_server(serve, "socket")
    client = QMPClient("finding")
    await client.connect("socket")
    await client.disconnect()
    server.close()
    print("bytes:", received.decode().rstrip("\n"))
    print("line end:", received.endswith(b"\n"))


asyncio.run(main())
END

cat >expected <<'END'
bytes: {"execute":"qmp_capabilities","arguments":{}}
line end: False
END

timeout 120 python3 finding.py >seen
if ! diff expected seen; then
    echo "CHANGED: qemu.qmp sends something else" >&2
    exit 1
fi
echo "As described: commands have no line end"
