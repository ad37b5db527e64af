"""Connects to an address until the backend of this very node answers: client.py ADDRESS POLICY."""

import os
import socket
import sys
import time

SECONDS = 60
address, policy = sys.argv[1:]
namespace, name = policy.split("/")
wanted = f"the backend on {os.environ['NODE']}"
end = time.monotonic() + SECONDS
while True:
    try:
        with socket.create_connection((address, 80), timeout=2) as connection:
            answer = connection.makefile().read(100)
    except OSError as error:
        answer = f"nobody ({error})"
    if answer == wanted:
        sys.stdout.write(f"{address}:80 is answered by {answer}: it is redirected\n")
        sys.exit(0)
    if time.monotonic() > end:
        break
    time.sleep(0.5)
sys.exit(
    f"{address}:80 is not redirected after {SECONDS} seconds: it is answered by {answer}, not by {wanted}.\n"
    f"What became of the policy: kubectl -n {namespace} describe clrp {name} (while the test runs)\n"
    f"How the node stands: lrpctl status, in the agent's pod on {os.environ['NODE']}"
)
