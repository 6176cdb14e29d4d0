"""Count the results that are committed in a store.

``count_results.py URL MORE_THAN SECONDS`` waits so long for more than that many.

Run in a guest, beside a worker, so it must cost next to nothing and wait for a database that is not up yet.
"""

from __future__ import annotations

import sqlite3
import sys
import time

import psycopg

QUERY = "select count(*) from result"
PAUSE = 0.03


def count(url: str) -> int:
    """Return the number of committed results; -1 while the store cannot be asked."""
    try:
        if url.startswith("sqlite"):
            path = url.removeprefix("sqlite:///")
            with sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=30) as file:
                return int(file.execute(QUERY).fetchone()[0])
        with psycopg.connect(url, connect_timeout=5) as server:
            row = server.execute(QUERY).fetchone()
            return int(row[0]) if row else -1
    except (sqlite3.OperationalError, psycopg.Error):
        return -1


def main(url: str, more_than: int, seconds: float) -> None:
    """Print the first count that is above, or the last one before the time is over."""
    end = time.monotonic() + seconds
    while (found := count(url)) <= more_than and time.monotonic() < end:
        time.sleep(PAUSE)
    print(found)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]))
