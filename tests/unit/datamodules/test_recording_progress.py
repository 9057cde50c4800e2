"""The bar of a recording: counts on a terminal, lines anywhere, silence where neither is wanted."""

import pytest
from rich.console import Console

from datamodules import progress


@pytest.mark.parametrize(("terminal", "wanted"), [(True, True), (True, False), (False, True)])
def test_a_bar_is_for_terminals_and_lines_are_for_all(capsys, monkeypatch, terminal, wanted):
    monkeypatch.setattr(progress, "Console", lambda stderr: Console(stderr=stderr, force_terminal=terminal, width=100))
    with progress.progress_bar("converting", "MB", 4.5, wanted, digits=1) as bar:
        bar.advance(1.25)
        bar.say("[bold]a.mp4[/bold]: " + "long " * 60)
        bar.advance(3.25)
    said = capsys.readouterr()
    assert said.out == "" and "[bold]a.mp4[/bold]: " + "long " * 60 in said.err, "as it is, in one line"
    assert ("4.5/4.5 MB" in said.err) == (terminal and wanted)
