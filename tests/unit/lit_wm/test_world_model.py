"""What the routes share: refusing wrong batches and checkpoints, padding, random state."""

import random
from types import SimpleNamespace

import numpy as np
import pytest
import tiny_routes
import torch

from datamodules.experience import ActionSpace, ExperienceSpec
from lit_wm.checkpoint_file import check_checkpoint
from lit_wm.contract import WorldModelContract, at
from lit_wm.distributed import ema_update, random_state, set_random_state
from lit_wm.errors import UserError
from lit_wm.world_model import without_padding

SPEC = ExperienceSpec({"frames": (64, 64, 3)}, ActionSpace("discrete", (4,)))
ROUTES = ("dreamer", "genie", "jepa")


def clip(b: int = 2, t: int = 6) -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(0)
    batch = {key: torch.zeros(b, t, dtype=torch.bool) for key in ("is_first", "is_last", "is_terminal")}
    batch["frames"] = torch.randint(0, 256, (b, t, 3, 64, 64), generator=g).to(torch.uint8)
    return batch | {"action": torch.randint(0, 4, (b, t), generator=g), "reward": torch.randn(b, t, generator=g)}


@pytest.mark.parametrize("route", ROUTES)
def test_every_route_answers_the_contract_without_state(route):
    model, batch = tiny_routes.tiny(route, SPEC.to_dict()).eval(), clip()
    assert isinstance(model, WorldModelContract) and model.route == route
    with torch.no_grad():
        states = model.observe(batch)
        actions = torch.zeros(2, 3, dtype=torch.int64) if model.action_space == "codes" else torch.zeros(2, 3, 4)
        dream = model.imagine(at(states, 3), actions, samples=2, generator=torch.Generator().manual_seed(0))
        features = model.features(states)
        assert features.shape[:2] == (2, 6) and model.features(dream).shape == (2, 2, 3, features.shape[-1])
        assert model.targets(batch).shape == features.shape
        assert torch.isfinite(features).all() and torch.isfinite(model.features(dream)).all()
        decoded = model.decode(dream)
        assert (route == "jepa") == (decoded is None)
        if decoded is not None:
            assert decoded.shape == (2, 2, 3, 3, 64, 64) and decoded.min() >= 0 and decoded.max() <= 1
        codes = model.infer_actions(batch)
        assert (route == "genie") == (codes is not None)


@pytest.mark.parametrize("route", ROUTES)
def test_the_future_changes_no_state_of_any_route(route):
    model, batch = tiny_routes.tiny(route, SPEC.to_dict()).eval(), clip()
    changed = {key: value.clone() for key, value in batch.items()}
    changed["frames"][:, 4:] = 255 - changed["frames"][:, 4:]
    with torch.no_grad():
        before, after = model.observe(batch), model.observe(changed)
    for t in range(4):
        assert torch.equal(model.features(at(before, t)), model.features(at(after, t)))


@pytest.mark.parametrize(("route", "options"), [("genie", {}), ("jepa", {"actions": False})])
def test_labels_that_are_not_consumed_may_be_absent(route, options):
    model, batch = tiny_routes.tiny(route, SPEC.to_dict(), **options), clip()
    assert model.labels == ("frames",)
    for key in ("action", "reward", "is_terminal"):
        del batch[key]
    model.check_batch(batch)
    assert all(torch.isfinite(value) for value in model.losses(batch).values())


@pytest.mark.parametrize(
    ("route", "options", "lacking"),
    [
        ("dreamer", {}, "actions and rewards"),
        ("jepa", {}, "actions"),
        ("jepa", {"actions": False}, None),
        ("genie", {}, None),
    ],
)
def test_what_needs_labels_refuses_data_without_them_before_it_is_built(route, options, lacking):
    video = ExperienceSpec(SPEC.observations, ActionSpace("none", ())).to_dict()
    if lacking is None:
        assert not tiny_routes.tiny(route, video, **options).spec.acted
        return
    with pytest.raises(
        UserError, match=rf"^the {route} model learns from {lacking}, which this data, being video,"
    ) as error:
        tiny_routes.tiny(route, video, **options)
    assert "actions: false" in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("route", ROUTES)
def test_missing_and_misshapen_keys_are_named(route):
    model, batch = tiny_routes.tiny(route, SPEC.to_dict()), clip()
    with pytest.raises(UserError, match="'frames'"):
        model.check_batch({key: value for key, value in batch.items() if key != "frames"})
    with pytest.raises(UserError, match=r"3x32x32.*built for 3x64x64"):
        model.check_batch(batch | {"frames": batch["frames"][..., :32, :32]})


def test_padded_rows_count_nothing():
    batch = clip(3) | {"weight": torch.tensor([1.0, 0.0, 1.0])}
    kept, count = without_padding(batch)
    assert count == 2 and torch.equal(kept["frames"], batch["frames"][[0, 2]])
    kept, count = without_padding(batch | {"weight": torch.zeros(3)})
    assert count == 0 and len(kept["frames"]) == 3
    assert without_padding(clip(3))[1] == 3


@pytest.mark.parametrize(
    ("checkpoint", "message"),
    [
        ({}, "not written by lit_wm"),
        ({"lit_wm": {"format": 99, "route": "jepa"}}, "format 99"),
        ({"lit_wm": {"format": 1, "route": "jepa"}}, "holds a jepa model, not a genie model"),
    ],
)
def test_checkpoints_of_others_are_refused(checkpoint, message):
    with pytest.raises(UserError, match=message):
        check_checkpoint(checkpoint, route="genie")


def test_random_state_is_all_of_it_and_loads_without_executing_anything(tmp_path):
    torch.save(random_state(), tmp_path / "state.pt")
    first = (torch.rand(3), np.random.rand(3), random.random())
    set_random_state(torch.load(tmp_path / "state.pt", weights_only=True))
    again = (torch.rand(3), np.random.rand(3), random.random())
    assert torch.equal(first[0], again[0]) and (first[1] == again[1]).all() and first[2] == again[2]


def test_ema_moves_parameters_and_copies_buffers():
    slow, fast = torch.nn.BatchNorm1d(2), torch.nn.BatchNorm1d(2)
    with torch.no_grad():
        fast.weight.fill_(3.0)
        fast.running_mean.fill_(5.0)
    ema_update(slow, fast, 0.75)
    assert slow.weight.tolist() == [1.5, 1.5] and slow.running_mean.tolist() == [5.0, 5.0]


@pytest.mark.parametrize(("route", "tensors", "message"), [("jepa", 1, "cannot be split"), ("genie", 2, "to 1")])
def test_fsdp2_is_refused_where_it_cannot_work(monkeypatch, route, tensors, message):
    monkeypatch.setattr("lit_wm.jepa.JEPAModule.can_be_sharded", False)
    model = tiny_routes.tiny(route, SPEC.to_dict())
    model._device_mesh = {"tensor_parallel": SimpleNamespace(size=lambda: tensors)}
    with pytest.raises(UserError, match=message):
        model.configure_model()
    model._device_mesh = None
    model.configure_model()  # any other strategy: nothing to do
