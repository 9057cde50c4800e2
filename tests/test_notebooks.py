"""Every notebook runs from top to bottom in an empty folder, and is committed without outputs."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))
THREE_ROUTES = Path(__file__).parents[1] / "notebooks" / "01_three_routes.ipynb"
DEMO = ["data/pong/index.json", *(f"runs/{route}_pong/checkpoints/last.ckpt" for route in ("dreamer", "genie", "jepa"))]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_is_committed_without_outputs(path):
    cells = [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    assert cells and not any(cell.outputs or cell.execution_count for cell in cells)


def opened_in_notebooks(files, tmp_path, monkeypatch):
    """The choice of runs and the scorecard of the three routes, opened in ``notebooks`` beside ``files``: what it chose, and
    the commands it gave instead of running them."""
    for file in files:
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).touch()
    (tmp_path / "notebooks").mkdir()
    monkeypatch.chdir(tmp_path / "notebooks")
    commands = []

    def command(words):
        commands.append(words)
        if words[0] == "compare":
            out = Path(words[words.index("--out") + 1])
            out.mkdir(parents=True)
            (out / "scorecard.md").touch()

    names = {"Path": Path, "lit_wm_command": command, "display": lambda _: None, "Markdown": str}
    sources = [cell.source for cell in nbformat.read(THREE_ROUTES, as_version=4).cells if cell.cell_type == "code"]
    for wanted in ("ROUTES = ", '"compare"'):
        (source,) = (source for source in sources if wanted in source)
        exec(source, names)
    return names, commands


def test_the_demo_without_a_scorecard_is_compared_on_the_data_that_was_found(tmp_path, monkeypatch):
    names, commands = opened_in_notebooks(DEMO, tmp_path, monkeypatch)
    assert names["world"] == "pong" and [words[0] for words in commands] == ["inspect", "compare"]
    compare = commands[-1]
    assert compare[compare.index("--root") + 1] == "../data/pong"


@pytest.mark.parametrize("missing", DEMO)
def test_a_part_of_the_demo_is_not_taken_for_all_of_it(missing, tmp_path, monkeypatch):
    names, commands = opened_in_notebooks([f for f in DEMO if f != missing], tmp_path, monkeypatch)
    assert names["world"] == "sprites"
    assert [words[0] for words in commands] == ["record", "fit", "fit", "fit", "inspect", "compare"]


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_runs(path, tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, timeout=900, resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    shown = [kind for output in outputs if output.output_type == "display_data" for kind in output.data]
    assert "image/png" in shown and "text/markdown" in shown
    assert not [output for output in outputs if output.output_type == "error"]
