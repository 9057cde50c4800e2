"""OpenLoopVideo: what is imagined is imagined, what is right is grey, and TensorBoard receives a moving picture."""

import io

import pytest
import tiny_routes
import torch
from lightning import Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from datamodules.replay import ReplayDataModule
from lit_wm.callbacks.open_loop_video import OpenLoopVideo, frames_of, open_loop
from lit_wm.errors import UserError

SPEC = {
    "observations": {"frames": [64, 64, 3]},
    "action": {"kind": "discrete", "sizes": [5], "names": []},
    "factors": [],
}


def batch_of(b=3, t=7):
    g = torch.Generator().manual_seed(0)
    batch = {key: torch.zeros(b, t, dtype=torch.bool) for key in ("is_first", "is_last", "is_terminal")}
    batch |= {"reward": torch.zeros(b, t), "action": torch.randint(0, 5, (b, t), generator=g)}
    return batch | {"frames": torch.randint(0, 256, (b, t, 3, 64, 64), generator=g).to(torch.uint8)}


def test_frames_after_the_context_are_not_seen():
    model, batch = tiny_routes.tiny("dreamer", SPEC), batch_of()
    before = open_loop(model, batch, 4, 2)
    assert before.shape == (3, 2, 7, 3, 64, 64) and model.training
    batch["frames"][:, 4:] = 255 - batch["frames"][:, 4:]
    after = open_loop(model, batch, 4, 2)
    assert torch.equal(before[1], after[1]) and not torch.equal(before[0], after[0])
    batch["frames"][:, 3] = 255 - batch["frames"][:, 3]
    assert not torch.equal(open_loop(model, batch, 4, 2)[1], after[1])


def test_each_action_moves_what_comes_after_it():
    model, batch = tiny_routes.tiny("dreamer", SPEC), batch_of()
    before = open_loop(model, batch, 3, 2)[1]
    batch["action"][:, 4] = (batch["action"][:, 4] + 1) % 5
    after = open_loop(model, batch, 3, 2)[1]
    assert torch.equal(before[:, :5], after[:, :5]) and not torch.equal(before[:, 5:], after[:, 5:])


def test_a_right_prediction_is_grey():
    rows = open_loop(tiny_routes.tiny("dreamer", SPEC), batch_of(), 4, 2)
    truth, prediction, error = rows
    assert torch.allclose(error, (prediction - truth + 1) / 2)
    assert len(frames_of(rows, 4)) == 7


def test_routes_without_pictures_or_actions_have_none():
    assert open_loop(tiny_routes.tiny("jepa", SPEC), batch_of(), 4, 2) is None
    assert open_loop(tiny_routes.tiny("genie", SPEC), batch_of(t=6), 4, 2) is None


def test_clips_that_are_all_context_are_refused():
    with pytest.raises(UserError, match="clips of 7 frames leave nothing to imagine after a context of 7"):
        open_loop(tiny_routes.tiny("dreamer", SPEC), batch_of(), 7, 2)
    with pytest.raises(UserError, match="at least 1"):
        OpenLoopVideo(every_n_steps=0)
    with pytest.raises(UserError, match="length 5 leaves nothing to imagine"):
        OpenLoopVideo(length=5)


def test_each_update_is_drawn_once_and_none_before_the_first(tmp_path):
    data = ReplayDataModule(
        env="sprites", num_envs=2, batch_size=2, clip_length=2, start_after=20, capacity=500, keep_episodes=False
    )
    trainer = Trainer(
        accelerator="cpu", max_steps=2, logger=TensorBoardLogger(str(tmp_path), "run", ""), enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, accumulate_grad_batches=3,
        callbacks=[OpenLoopVideo(1, context=3, clips=2, length=7)],
    )  # fmt: skip
    trainer.fit(tiny_routes.tiny("dreamer", data.spec), datamodule=data)
    events = EventAccumulator(str(tmp_path / "run"), size_guidance={"images": 0})
    events.Reload()
    assert [image.step for image in events.Images("open_loop/truth_prediction_error")] == [1, 2]


def test_a_run_that_has_nothing_to_draw_says_so():
    with pytest.warns(UserWarning, match="OpenLoopVideo draws nothing"):
        OpenLoopVideo().on_fit_start(None, tiny_routes.tiny("genie", SPEC))


def test_tensorboard_receives_it_while_an_agent_learns(tmp_path):
    data = ReplayDataModule(
        env="sprites", num_envs=2, batch_size=2, clip_length=2, start_after=20, capacity=500, keep_episodes=False
    )
    trainer = Trainer(
        accelerator="cpu", max_steps=2, logger=TensorBoardLogger(str(tmp_path), "run", ""), enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, callbacks=[OpenLoopVideo(2, context=3, clips=2, length=7)],
        log_every_n_steps=1,
    )  # fmt: skip
    trainer.fit(tiny_routes.tiny("dreamer", data.spec), datamodule=data)
    events = EventAccumulator(str(tmp_path / "run"))
    events.Reload()
    (video,) = events.Images("open_loop/truth_prediction_error")
    with Image.open(io.BytesIO(video.encoded_image_string)) as picture:
        assert video.step == 2 and picture.format == "GIF" and picture.n_frames == 7
    wanted = {"env/steps", "env/steps_per_second", "replay/ratio", "train/kl", "train/entropy", "train/prior_entropy"}
    assert wanted <= set(events.Tags()["scalars"])
