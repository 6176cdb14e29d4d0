"""Where a process of this machine answers HTTP: at the port that it really listens on, whatever was configured."""

from __future__ import annotations

import http.client
import ipaddress
from collections.abc import Iterator

import psutil

LIMIT = 5.0  # seconds for one answer


def addresses(pid: int) -> Iterator[tuple[str, int]]:
    """Yield the TCP addresses on which this process listens; none where it has ended.

    Raises PermissionError for a process of another user.
    """
    try:
        connections = psutil.Process(pid).net_connections(kind="tcp")
    except psutil.AccessDenied:
        raise PermissionError(f"the sockets of process {pid} are another user's") from None
    except psutil.Error:
        return
    for connection in connections:
        if connection.status == psutil.CONN_LISTEN:
            yield _reachable(connection.laddr.ip), connection.laddr.port


def _reachable(address: str) -> str:
    """Return the loopback for a server that listens on every address."""
    found = ipaddress.ip_address(address)
    if not found.is_unspecified:
        return address
    return "127.0.0.1" if found.version == 4 else "::1"


def url(address: str, port: int) -> str:
    """Write it as a URL."""
    return f"http://[{address}]:{port}" if ":" in address else f"http://{address}:{port}"


def status(address: str, port: int, path: str) -> int:
    """Return the status with which a path is answered; no proxy is asked. Raises OSError where there is no answer."""
    connection = http.client.HTTPConnection(address, port, timeout=LIMIT)
    try:
        connection.request("GET", path)
        return connection.getresponse().status
    except http.client.HTTPException as error:
        raise OSError(f"no HTTP: {error}") from None
    finally:
        connection.close()
