"""What a user who made a mistake is told."""

from __future__ import annotations

import pytest

from lit_wm.cli.main import main


def said(capsys: pytest.CaptureFixture[str], argv: list[str]) -> str:
    """Run, expect exit code 2 and a single line on stderr, and return it."""
    with pytest.raises(SystemExit) as stop:
        main(argv)
    lines = capsys.readouterr().err.strip().splitlines()
    assert stop.value.code == 2 and len(lines) == 1 and lines[0].startswith("lit-wm: error: "), lines
    return lines[0]
