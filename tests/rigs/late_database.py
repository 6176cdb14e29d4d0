"""A PostgreSQL that comes up late, as behind Docker's proxy after a reboot: the incident's own sequence.

``late_database.py PORT CLOSING STARTING COMMAND…``: for so many seconds accept and close, for so many more
answer "the database system is starting up" (SQLSTATE 57P03), then become the command on the same port.
Run by a guest's systemd with a bare interpreter.
"""

from __future__ import annotations

import os
import socket
import struct
import sys
import time

# The protocol's requests for encryption, each answered with N (no); PostgreSQL manual, "Message Formats".
NEGOTIATIONS = (80877103, 80877104)
FIELDS = {"S": "FATAL", "V": "FATAL", "C": "57P03", "M": "the database system is starting up"}


def refuse(client: socket.socket) -> None:
    """Speak the protocol just far enough to refuse."""
    client.settimeout(5)
    while struct.unpack("!ii", client.recv(8))[1] in NEGOTIATIONS:
        client.sendall(b"N")
    body = b"".join(kind.encode() + text.encode() + b"\0" for kind, text in FIELDS.items()) + b"\0"
    client.sendall(b"E" + struct.pack("!i", len(body) + 4) + body)


def main(port: int, closing: float, starting: float, command: list[str]) -> None:
    """Play the sequence, then become the real server."""
    begun = time.monotonic()
    with socket.create_server(("127.0.0.1", port)) as server:
        while (elapsed := time.monotonic() - begun) < closing + starting:
            server.settimeout(closing + starting - elapsed)
            try:
                client, _ = server.accept()
                with client:
                    if time.monotonic() - begun > closing:
                        refuse(client)
            except (OSError, struct.error):
                continue
    os.execv(command[0], command)


if __name__ == "__main__":
    main(int(sys.argv[1]), float(sys.argv[2]), float(sys.argv[3]), sys.argv[4:])
