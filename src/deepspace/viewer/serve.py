"""`deepspace view`: serve a project to the browser of this machine."""

from __future__ import annotations

import secrets
import socket
import webbrowser
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

from deepspace.core.errors import InputError
from deepspace.core.progress import log
from deepspace.viewer.project import open_project

HOST = "127.0.0.1"
WAITING = 128


def view(
    path: Path | str,
    *,
    sheet: Path | str | None = None,
    ihc: Mapping[str, Path | str] | None = None,
    port: int = 0,
    browser: bool = True,
    tell: Callable[[str], None] = print,
) -> None:
    """Show slides, measurements and predictions in the browser until interrupted.

    Only this machine is served, and of it only who knows the address with its random token.

    Parameters
    ----------
    path, sheet, ihc
        See `deepspace.viewer.project.open_project`.
    port : int
        0 takes a free one.
    browser : bool
        Open the page in the user's browser.
    tell : callable
        Given the address.

    Raises
    ------
    InputError
        If nothing can be shown, the port is taken, or the server is not installed.
    """
    try:
        import uvicorn  # noqa: PLC0415

        from deepspace.viewer.app import make_app  # noqa: PLC0415
    except ImportError as error:
        raise InputError(
            f"the viewer needs {error.name}; run: pip install 'deepspace[viewer]'"
        ) from None
    listener = _listen(port)
    project = open_project(path, sheet=sheet, ihc=ihc)
    number = listener.getsockname()[1]
    token = secrets.token_urlsafe(32)
    app = make_app(project, token, {f"{HOST}:{number}", f"localhost:{number}"})
    address = f"http://{HOST}:{number}/?token={token}"
    tell(f"{len(project.sections)} sections are shown at\n    {address}\nCtrl-C ends it.")
    if browser and not webbrowser.open(address):
        log.info("no browser could be opened here; open the address by hand")
    config = uvicorn.Config(app, log_level="warning", access_log=False, server_header=False)
    with suppress(KeyboardInterrupt):  # which is how it ends
        uvicorn.Server(config).run([listener])


def _listen(port: int) -> socket.socket:
    # only of a socket that is named TCP does asyncio turn off Nagle's delay of 40 ms an answer
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((HOST, port))
        listener.listen(WAITING)  # so that a browser that is faster than the server waits
    except (OSError, OverflowError) as error:
        raise InputError(f"--port {port}: cannot be used ({error}); take another, or 0") from error
    return listener
