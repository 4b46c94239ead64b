"""Run the command line inside the test's process."""

from __future__ import annotations

import sys

import pytest

from deepspace import cli


def call(*args: object, capsys: pytest.CaptureFixture[str] | None = None) -> tuple[int, str, str]:
    """Run the program in this process: exit code, standard output, standard error."""
    argv = sys.argv
    sys.argv = ["deepspace", *map(str, args)]
    try:
        with pytest.raises(SystemExit) as caught:
            cli.main()
    finally:
        sys.argv = argv
    code = caught.value.code
    out, err = capsys.readouterr() if capsys else ("", "")
    return int(code or 0), out, err
