"""The tasks and arms beside frame-to-frame with tokens: what they learn from, what they see, and what is refused."""

import pytest
import torch
from jepa_examples import SPEC, batch_of, small

from datamodules.experience import ActionSpace, ExperienceSpec
from lit_wm.contract import at
from lit_wm.errors import UserError
from lit_wm.jepa.predictor import frame_mask, roll_out
from lit_wm.jepa.vector_predictors import LinearPredictor, PerceptronPredictor, RecurrentPredictor

BIG = ExperienceSpec({"frames": (32, 32, 3)}, ActionSpace("discrete", (3,)))
FEW = {"targets": 2, "least_context": 2}
POOLED = {"pool": "mean"}
ARMS = {
    "image": {"task": "image", "masks": [FEW]},
    "image of pixels": {"task": "image", "masks": [FEW], "target": {"kind": "pixels"}},
    "image with VICReg": {"task": "image", "masks": [FEW], "regularizers": {"variance": 1.0, "covariance": 1.0}},
    "image with SIGReg": {"task": "image", "masks": [FEW], "target": {"kind": "online"}, "regularizers": {"sigreg": 0.1, "slices": 8}},
    "video": {"task": "video", "encoder": {"frames": 4, "tubelet": 2}},
    "video of pixels": {"task": "video", "encoder": {"frames": 4, "tubelet": 2}, "target": {"kind": "pixels"}},
    "lewm": {
        "encoder": {"pool": "class", "projector": 32},
        "predictor": {"kind": "conditional", "head_width": 8, "mlp": 32, "projector": 32, "depth": 2},
        "target": {"kind": "online", "normalise": False},
        "regularizers": {"sigreg": 0.1, "slices": 8},
        "loss": {"distance": "l2"},
    },
    "pldm": {
        "encoder": {"kind": "convolution", "dim": 16, "widths": (8, 8), "hidden": 32, "patch": 8, "depth": 3, "heads": 4},
        "predictor": {"kind": "recurrent", "dim": 16, "depth": 3, "heads": 4, "rollout_steps": 4},
        "target": {"kind": "online", "normalise": False},
        "regularizers": {
            "variance": 2.2, "covariance": 13.0, "variance_time": 0.19, "covariance_time": 0.7, "smoothness": 0.5, "inverse_dynamics": 2.0,
            "samples": "first_frame",
        },
        "loss": {"teacher_forcing": 0.0},
    },
    "perceptron": {"encoder": POOLED, "predictor": {"kind": "perceptron", "heads": 4, "history": 2}},
    "linear": {"encoder": POOLED, "predictor": {"kind": "linear", "dim": 64, "depth": 3, "heads": 4, "rollout_steps": 1}},
    "next pixels": {"loss": {"teacher_forcing": 0.0, "rollout": 0.0, "next_pixels": 1.0}, "target": {"kind": "stop_gradient"}},
    "reconstruction": {"encoder": POOLED, "predictor": {"kind": "linear", "dim": 64, "depth": 3, "heads": 4}, "loss": {"current_pixels": 1.0, "pixel_widths": (8, 8)}},
}  # fmt: skip


def model_of(arm, spec=BIG, **options):
    return small(spec, **(ARMS[arm] | options))


def minimised(losses):
    return sum(value for name, value in losses.items() if not name.startswith("_"))


@pytest.mark.parametrize("arm", ARMS)
def test_everything_learns_but_the_target(arm):
    torch.manual_seed(1)
    model, batch = model_of(arm), batch_of(t=5, spec=BIG)
    if arm == "lewm":  # modulation begins at zero, and hides what it gates
        for layer in model.task.predictor.transformer.layers:
            torch.nn.init.normal_(layer.adaLN_modulation[1].weight, std=0.1)
    losses = model.losses(batch)
    minimised(losses).backward()
    assert all(torch.isfinite(value) for value in losses.values())
    still = [
        name for name, p in model.task.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())
    ]
    allowed = {
        "reconstruction": (
            "predictor.action.weight",
        ),  # nothing but the representation is asked of it at the first update
        "next pixels": (),
    }.get(arm, ())
    assert [name for name in still if name not in allowed and "cls" not in name] == []
    if model.target_settings.kind == "ema":
        assert all(p.grad is None for p in model.task.target_encoder.parameters())


@pytest.mark.parametrize("arm", ARMS)
def test_every_arm_answers_the_contract(arm):
    model, batch = model_of(arm).eval(), batch_of(t=5, spec=BIG)
    with torch.no_grad():
        state = model.observe(batch)
        features = model.features(state)
        assert features.shape == model.targets(batch).shape and features.shape[:2] == (2, 5)
        tokens = model.feature_map(state)
        assert tokens.shape[:2] == (2, 5) and tokens.shape[-1] == 16
        if not model.imagines:
            assert model.action_space == "none" and model.labels == ("frames",)
            with pytest.raises(UserError, match="not the future: it cannot imagine"):
                model.imagine(at(state, 2), torch.zeros(2, 3))
            return
        future = model.imagine(at(state, 2), torch.rand(2, 3, 3), samples=2)
        assert model.features(future).shape == (2, 2, 3, features.shape[-1])
        assert {k: x.shape[3:] for k, x in future.items()} == {k: x.shape[2:] for k, x in state.items()}


@pytest.mark.parametrize("arm", ARMS)
def test_the_future_changes_nothing_before_it(arm):
    model, batch = model_of(arm).eval(), batch_of(t=5, spec=BIG)
    changed = batch | {"frames": batch["frames"].clone()}
    changed["frames"][:, 3] = 255 - changed["frames"][:, 3]
    with torch.no_grad():
        before, after = (model.features(model.observe(b)) for b in (batch, changed))
    torch.testing.assert_close(before[:, :3], after[:, :3], rtol=1e-5, atol=1e-5)
    assert not torch.allclose(before[:, 3], after[:, 3], atol=1e-4)


def test_a_video_clip_begins_with_its_episode():
    model, batch = model_of("video").eval(), batch_of(t=6, spec=BIG)
    batch["is_first"][:, 3] = True
    changed = batch | {"frames": batch["frames"].clone()}
    changed["frames"][:, :3] = 255 - changed["frames"][:, :3]
    with torch.no_grad():
        before, after = (model.features(model.observe(b)) for b in (batch, changed))
    torch.testing.assert_close(before[:, 3:], after[:, 3:], rtol=1e-5, atol=1e-5)
    assert not torch.allclose(before[:, :3], after[:, :3], atol=1e-4)


def test_pictures_are_encoded_one_by_one_and_clips_cut_one_after_the_other():
    model, batch = model_of("image"), batch_of(t=5, spec=BIG)
    assert model.task.inputs(batch["frames"]).shape == (10, 3, 32, 32)
    video = model_of("video")
    clips = video.task.inputs(torch.cat([batch["frames"], batch["frames"]], 1))  # 10 frames: two clips of 4
    assert clips.shape == (4, 3, 4, 32, 32)
    with pytest.raises(UserError, match="clip_length is 3, but the jepa model's encoder takes clips of 4 frames"):
        video.losses({key: value[:, :3] for key, value in batch.items()})


def test_hidden_pixels_are_numbered_as_the_tokens():
    """Paint one patch: its number is that of the token whose embedding changes."""
    for arm, frames in (("image of pixels", 1), ("video of pixels", 4)):
        task = model_of(arm).task
        x = torch.zeros(1, 3, frames, 32, 32) if frames > 1 else torch.zeros(1, 3, 32, 32)
        painted = x.clone()
        painted[..., 8:16, 24:32] = 1.0
        if frames > 1:
            painted[:, :, :2] = 0  # the second tubelet alone
        hidden = (task._patches(painted) - task._patches(x)).abs().sum(-1)[0] > 0
        embedded = (task.encoder.patch_embed(painted) - task.encoder.patch_embed(x)).abs().sum(-1)[0] > 0
        assert hidden.sum() == 1 and torch.equal(hidden, embedded)


def test_directions_of_sigreg_are_those_of_the_update():
    model, batch = model_of("lewm").eval(), batch_of(t=5, spec=BIG)
    with torch.no_grad():
        first, again, next_one = (model.task.losses(batch, update)["sigreg"] for update in (3, 3, 4))
    assert torch.equal(first, again) and not torch.equal(first, next_one)


@pytest.mark.parametrize(
    "predictor",
    [LinearPredictor(8, 3), RecurrentPredictor(8, 3, 16), PerceptronPredictor(8, 3, 2, 16, 1), PerceptronPredictor(8, 3, 3, 16, 2)],
    ids=["linear", "recurrent", "perceptron 2", "perceptron 3"],
)  # fmt: skip
def test_vector_predictors_feed_back_as_they_predict(predictor):
    """Frame by frame with a past equals all at once; other episodes and the future are not looked at."""
    torch.manual_seed(0)
    z, a = torch.randn(2, 5, 1, 8), torch.randn(2, 5, 3)
    episode = torch.tensor([[0, 0, 0, 0, 0], [0, 0, 1, 1, 1]])
    mask = frame_mask(episode)
    whole, past = predictor(z, {"action": a}, mask)
    past = predictor.first_frames(past, 2)
    for t in (2, 3, 4):
        one, past = predictor(z[:, t : t + 1], {"action": a[:, t : t + 1]}, mask[:, t : t + 1, : t + 1], past)
        torch.testing.assert_close(one[:, 0], whole[:, t])
    other = z.clone()
    other[1, :2] += 1
    torch.testing.assert_close(predictor(other, {"action": a}, mask)[0][1, 2:], whole[1, 2:])
    rolled = roll_out(lambda z, t, p: predictor(z, {"action": a[:, t : t + 1]}, mask[:, t : t + 1, : t + 1], p), whole[:, 1], predictor.first_frames(past, 2), 2, 4)  # fmt: skip
    assert rolled.shape == (2, 3, 1, 8)


def test_the_recurrent_state_is_the_representation():
    predictor = RecurrentPredictor(8, 3, 16)
    z, a = torch.randn(2, 1, 1, 8), torch.randn(2, 1, 3)
    expected = predictor.cell(predictor.action(a[:, 0]), z[:, 0, 0])
    torch.testing.assert_close(predictor(z, {"action": a}, torch.ones(1, 1, 1, dtype=torch.bool))[0][:, 0, 0], expected)


REFUSED = {
    "a task that is not there": ({"task": "text"}, "task of the jepa model 'text'"),
    "masks of frames": ({"masks": [FEW]}, "masks of the jepa model hide parts of pictures"),
    "a key that is not there": ({"encoder": {"width": 3}}, "'encoder' of the jepa model: got an unexpected keyword argument 'width'"),
    "vectors for a token predictor": ({"encoder": POOLED}, "takes a token for each patch"),
    "tokens for a vector predictor": ({"predictor": {"kind": "recurrent", "dim": 64, "depth": 3, "heads": 4}}, "takes one vector a frame"),
    "a projector of tokens": ({"encoder": {"projector": 8}}, "projector of the jepa model's encoder is 8, but pool is none"),
    "frames of pictures": ({"task": "image", "encoder": {"frames": 4}}, "frames of the jepa model's encoder is 4, but task is image"),
    "momentum without an average": ({"target": {"kind": "online", "momentum_start": 0.9}}, "momentum_start .* but kind is online"),
    "momentum that falls": ({"target": {"momentum_start": 0.9, "momentum_end": 0.5}}, "it must rise"),
    "hidden pixels of frames": ({"target": {"kind": "pixels"}}, "give loss.next_pixels"),
    "history of a masked predictor": ({"task": "image", "predictor": {"history": 4}}, "history of the jepa model's predictor is 4"),
    "inverse dynamics without actions": ({"actions": False, "regularizers": {"inverse_dynamics": 1.0}}, "which it is not given"),
    "no blocks to predict with": ({"task": "image", "predictor": {"depth": 0}}, "at least 1 block"),
    "frames that tubelets do not divide": ({"task": "video", "encoder": {"frames": 5}}, "not divisible by tubelets of 2"),
    "a negative weight": ({"regularizers": {"variance": -1.0}}, "variance of the jepa model's regularizers is -1.0"),
}  # fmt: skip


@pytest.mark.parametrize(("options", "says"), REFUSED.values(), ids=REFUSED.keys())
def test_what_cannot_work_is_refused(options, says):
    with pytest.raises(UserError, match=says):
        small(**options)


def test_masks_that_leave_no_context_are_refused():
    with pytest.raises(UserError, match="fewer than 10 of 4 tokens"):
        small(SPEC, task="image").losses(batch_of())
