"""lit_wm.load: what is no run is refused with what to do."""

import pytest

import lit_wm
from lit_wm.errors import UserError


@pytest.mark.parametrize("nothing", [None, ""])
def test_nothing_is_no_run(nothing):
    with pytest.raises(UserError, match="no run is named"):
        lit_wm.load(nothing)


def test_a_folder_of_runs_names_them(tmp_path):
    for name in ("b", "a"):
        (tmp_path / name / "checkpoints").mkdir(parents=True)
        (tmp_path / name / "checkpoints" / "last.ckpt").touch()
    (tmp_path / "unfinished").mkdir()
    with pytest.raises(UserError, match=r"is no run but holds some: name one of a, b$"):
        lit_wm.load(tmp_path)
    with pytest.raises(UserError, match=r"no checkpoint at .*unfinished"):
        lit_wm.load(tmp_path / "unfinished")


def test_a_file_that_is_no_checkpoint_is_not_explained_by_torch(tmp_path):
    (tmp_path / "text.ckpt").write_text("just text")
    with pytest.raises(UserError, match=r"text\.ckpt cannot be read: it is truncated or not a checkpoint$"):
        lit_wm.load(tmp_path / "text.ckpt")
