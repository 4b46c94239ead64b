"""The command line: one command is one call of a workflow.

A command is a function in a module of this folder and a row of `COMMANDS`. Heavy modules are
imported inside the commands, so that ``--help`` answers at once.
"""

from __future__ import annotations

import errno
import signal
import sys
import warnings
from collections.abc import Callable
from typing import Annotated, Any, NoReturn

import typer

from deepspace.cli.annotate import annotate
from deepspace.cli.explain import explain
from deepspace.cli.export import export
from deepspace.cli.ihc import ihc
from deepspace.cli.learn import evaluate, train
from deepspace.cli.look import demo, inspect
from deepspace.cli.report import report
from deepspace.cli.schema import schema
from deepspace.cli.use import complete, predict
from deepspace.cli.view import view
from deepspace.core.errors import InputError

# what typer exits with after Ctrl-C, and what a terminated command exits with
INTERRUPTED = 130
TERMINATED = 143
# what the disk does and no program mends: full, over quota, read-only, not allowed
DISK = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM}

app = typer.Typer(
    name="deepspace",
    help="Complete a spatial transcriptomics experiment from H&E images, and say what to trust.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
)


def main() -> NoReturn:
    """Entry point: bad input ends with one clear message and exit code 2, never a traceback."""
    if not sys.warnoptions:
        # what libraries tell their developers is not for the user
        warnings.simplefilter("ignore")
    if signal.getsignal(signal.SIGTERM) == signal.SIG_DFL:
        # a scheduler's signal cleans up as Ctrl-C does
        signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(TERMINATED))
    try:
        app()
    except InputError as error:
        typer.echo(f"deepspace: {error}", err=True)
        raise SystemExit(2) from None
    except OSError as error:
        if error.errno not in DISK:
            raise
        where = f" ({error.filename})" if error.filename else ""
        typer.echo(
            f"deepspace: {error.strerror}{where}: make room or mend it, and run the same command "
            "again; what is done stays",
            err=True,
        )
        raise SystemExit(2) from None
    except SystemExit as end:
        if end.code in (INTERRUPTED, TERMINATED):
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # who presses twice gets no traceback
            typer.echo("deepspace: interrupted; run the same command again to go on", err=True)
        raise
    raise SystemExit(0)


def _version(wanted: bool) -> None:
    if wanted:
        from deepspace import __version__

        typer.echo(f"deepspace {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


COMMANDS: tuple[Callable[..., Any], ...] = (
    demo,
    inspect,
    train,
    evaluate,
    predict,
    complete,
    report,
    view,
    export,
    annotate,
    explain,
    ihc,
    schema,
)
for _command in COMMANDS:
    app.command()(_command)
