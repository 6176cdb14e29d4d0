"""The command for programs: ``serve``."""

from __future__ import annotations

from typing import Annotated

import typer

from vbatch.cli.queue import app

__all__ = ["app"]


@app.command()
def serve(
    *,
    host: Annotated[
        str | None,
        typer.Option(
            "--host",
            metavar="H",
            help="Listen on this address; another one than loopback needs a key of yours.",
        ),
    ] = None,
    port: Annotated[
        int | None,
        typer.Option("--port", metavar="P", min=0, max=65535, help="Listen on this port.  [default: 8088]"),
    ] = None,
    no_key: Annotated[
        bool, typer.Option("--no-key", help="Ask for no key: every account of this machine may use it.")
    ] = False,
    print_key: Annotated[bool, typer.Option("--print-key", help="Print the key and exit.")] = False,
) -> None:
    """Serve OpenAI's batch API over HTTP.

    The queue is the same. The first start makes a key, which every request needs. A worker runs beside it as usual;
    the server itself loads no model.
    """
    from vbatch.cli.serve import serve as run

    run(host=host, port=port, no_key=no_key, print_key=print_key)
