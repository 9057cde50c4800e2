"""EpisodeReport: every return is written down, with the mean's interval and a video that shows the frames."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from lit_wm.callbacks.episode_report import VIDEO_STEPS, EpisodeReport, enlarged
from lit_wm.evaluation.statistics import t_interval


def report(folder, episodes):
    callback = EpisodeReport(folder)
    data = SimpleNamespace(env_id="sprites", env_args={"size": 32}, settings=SimpleNamespace(seed=3))
    trainer, model = SimpleNamespace(datamodule=data, is_global_zero=True), SimpleNamespace(updates=7)
    for batch in episodes:
        callback.on_test_batch_end(trainer, model, None, batch, 0)
    callback.on_test_end(trainer, model)


def episode(total, frames=None):
    batch = {"episode_return": torch.tensor([total]), "episode_length": torch.tensor([5])}
    return batch if frames is None else batch | {"frames": frames}


def test_every_return_and_their_interval(tmp_path, capsys):
    returns = [1.0, 4.0, 2.5, 0.0]
    report(tmp_path / "run", [episode(total) for total in returns])
    written = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    assert written["returns"] == returns and written["lengths"] == [5] * 4 and written["updates"] == 7
    assert (written["mean_return"], written["low_95"], written["high_95"]) == pytest.approx(t_interval(returns))
    assert written["environment"] == {"id": "sprites", "size": 32}
    assert "mean return 1.9" in capsys.readouterr().out and not list(tmp_path.rglob("*.gif"))


def test_one_episode_has_no_interval_and_a_video_shows_its_frames(tmp_path):
    frames = torch.zeros(1, 6, 3, 64, 64, dtype=torch.uint8)
    frames[0, :, 0] = torch.arange(6, dtype=torch.uint8).view(6, 1, 1) * 50
    report(tmp_path, [episode(1.0, frames)])
    assert json.loads((tmp_path / "evaluation.json").read_text())["low_95"] is None
    with Image.open(tmp_path / "episode-0.gif") as video:
        assert video.n_frames == 6 and video.size == (192, 192)
        for t in range(6):
            video.seek(t)
            assert abs(int(np.array(video.convert("RGB"))[0, 0, 0]) - 50 * t) <= 4


def test_batches_of_clips_leave_nothing(tmp_path):
    report(tmp_path, [{"frames": torch.zeros(2, 4, 3, 8, 8)}])
    assert not list(tmp_path.iterdir())


def test_long_episodes_are_thinned_and_grey_ones_coloured():
    pictures = enlarged(np.zeros((2 * VIDEO_STEPS, 16, 16, 1), np.uint8))
    assert len(pictures) == VIDEO_STEPS and pictures[0].mode == "RGB" and pictures[0].size == (192, 192)
