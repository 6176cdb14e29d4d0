"""``python -m vbatch``."""

from vbatch.cli import run

if __name__ == "__main__":
    run()
