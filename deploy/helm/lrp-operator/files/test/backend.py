"""Answers every connection with the node that it runs on."""

import contextlib
import os
import socket

both = socket.has_dualstack_ipv6()
family = socket.AF_INET6 if both else socket.AF_INET
with socket.create_server(("", 8080), family=family, dualstack_ipv6=both) as server:
    while True:
        connection, _ = server.accept()
        with connection, contextlib.suppress(OSError):  # a probe may have gone
            connection.sendall(f"the backend on {os.environ['NODE']}".encode())
