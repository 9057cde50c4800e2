"""JEPAModule: what it sees and when, what receives gradients, and the contract."""

import pytest
import torch
from jepa_examples import SPEC, batch_of, small

from datamodules.experience import ActionSpace, ExperienceSpec, action_vectors
from lit_wm.contract import WorldModelContract, at
from lit_wm.errors import UserError
from lit_wm.nn.moments import spatial_moments


def scalar(losses: dict) -> torch.Tensor:
    return sum(value for name, value in losses.items() if not name.startswith("_"))


@pytest.mark.parametrize("actions", [True, False])
def test_answers_the_contract(actions):
    model = small(actions=actions)
    assert isinstance(model, WorldModelContract)
    assert model.action_space == ("environment" if actions else "none")
    assert model.labels == (("frames", "actions") if actions else ("frames",))
    batch = batch_of()
    state = model.observe(batch)
    assert all(x.shape[:2] == (2, 7) for x in state.values())
    features = model.features(state)
    assert features.shape == model.targets(batch).shape == (2, 7, 4 * 16)
    assert model.feature_map(state).shape == (2, 7, 4, 16)
    controls = torch.rand(2, 5, 3) if actions else torch.zeros(2, 5)
    future = model.imagine(at(state, 3), controls, samples=3)
    assert all(x.shape[:3] == (2, 3, 5) for x in future.values())
    assert {k: x.shape[3:] for k, x in future.items()} == {k: x.shape[2:] for k, x in state.items()}
    assert torch.equal(model.features(future)[:, 0], model.features(future)[:, 2])  # deterministic: equal samples
    assert model.decode(state) is model.infer_actions(batch) is model.log_prob(state, batch) is None


@pytest.mark.parametrize("rollout_steps", [1, 2, 3])
def test_no_gradient_reaches_the_target_and_all_else_learns(rollout_steps):
    model = small(predictor={"rollout_steps": rollout_steps}, regularizers={"variance": 0.1})
    losses = model.losses(batch_of())
    assert ("rollout" in losses) == (rollout_steps > 1)
    scalar(losses).backward()
    assert all(p.grad is None for p in model.task.target_encoder.parameters())
    unmoved = [
        name
        for part in ("encoder", "predictor")
        for name, p in getattr(model.task, part).named_parameters()
        if p.grad is None or not p.grad.abs().sum() > 0
    ]
    assert unmoved == []


def test_target_starts_as_a_copy_and_is_not_optimised():
    model = small(optimizer={"steps": 10})
    for online, target in zip(model.task.encoder.parameters(), model.task.target_encoder.parameters(), strict=True):
        assert torch.equal(online, target) and online.data_ptr() != target.data_ptr()
    groups = model.configure_optimizers()["optimizer"].param_groups
    optimised = {id(p) for group in groups for p in group["params"]}
    assert optimised == {id(p) for part in (model.task.encoder, model.task.predictor) for p in part.parameters()}
    assert [group["weight_decay"] for group in groups] == [0.04, 0.0]
    assert all(p.ndim > 1 for p in groups[0]["params"]) and all(p.ndim == 1 for p in groups[1]["params"])


def test_targets_are_moments_of_the_normalised_ema_tokens():
    model, batch = small(), batch_of()
    with torch.no_grad():
        for p in model.task.target_encoder.parameters():
            p.mul_(1.5)
        h = model.task.encode(model.task.target_encoder, batch["frames"])
    assert h.mean(-1).abs().max() < 1e-5 and (h.var(-1, unbiased=False) - 1).abs().max() < 1e-3
    now = spatial_moments(h, (2, 2))
    assert torch.allclose(model.targets(batch)[..., : now.shape[-1]], now, atol=1e-6)
    with torch.no_grad():
        model.task.encoder.load_state_dict(model.task.target_encoder.state_dict())
    torch.testing.assert_close(model.features(model.observe(batch)), model.targets(batch))  # one layout for both


@pytest.mark.parametrize(("actions", "absent"), [(False, ("action", "reward", "state")), (True, ("reward", "state"))])
def test_trains_without_what_it_does_not_need(actions, absent):
    batch = {key: value for key, value in batch_of().items() if key not in absent}
    loss = small(actions=actions).training_step(batch, 0)
    assert loss.requires_grad and torch.isfinite(loss)


def test_missing_action_is_one_line():
    batch = batch_of()
    del batch["action"]
    with pytest.raises(UserError, match="needs 'action'"):
        small().training_step(batch, 0)


def test_state_is_ignored():
    model, batch = small(), batch_of()
    with_state = batch | {"state": torch.randn(2, 7, 4)}
    for name, value in model.losses(batch).items():
        assert torch.equal(value, model.losses(with_state)[name])


@pytest.mark.parametrize("key", ["frames", "action"])
def test_the_future_changes_nothing_before_it(key):
    model, batch = small(), batch_of()
    changed = batch | {key: batch[key].clone()}
    changed[key][:, 4] = (changed[key][:, 4] + 1) % 3
    for name, before in model.observe(batch).items():
        after = model.observe(changed)[name]
        assert torch.equal(before[:, :4], after[:, :4])
        if key == "action":
            assert torch.equal(before[:, 4], after[:, 4])  # the action at t is taken after frame t


def test_imagination_depends_on_each_action_from_its_step_on():
    model = small()
    with torch.no_grad():
        model.task.predictor.action_encoder.weight.mul_(50)
    state = at(model.observe(batch_of()), 4)
    controls = torch.rand(2, 4, 3)
    before = model.features(model.imagine(state, controls))
    controls[:, 2] += 1
    after = model.features(model.imagine(state, controls))
    assert torch.equal(before[:, :, :2], after[:, :, :2])
    assert ((before - after)[:, :, 2:].abs().amax(-1) > 1e-5).all()


def test_imagination_equals_feeding_back_by_hand():
    model, batch = small(), batch_of(t=9)
    actions = action_vectors(batch["action"], batch["is_last"], SPEC.action)
    state = at(model.observe(batch), 3)
    whole = model.imagine(state, actions[:, 3:7])
    for k in range(4):  # one step at a time, from the state before
        one = model.imagine(state, actions[:, 3 + k : 4 + k])
        for name in whole:
            torch.testing.assert_close(one[name][:, 0, 0], whole[name][:, 0, k], rtol=1e-5, atol=1e-5)
        state = {name: x[:, 0, 0] for name, x in one.items()}


def test_one_imagined_step_is_the_training_prediction():
    model, batch = small(predictor={"rollout_steps": 1}), batch_of(t=4)
    h = model.task.encode(model.task.target_encoder, batch["frames"])[:, 1:]
    state, total = model.observe(batch), 0
    for t in range(3):  # contexts of 1, 2 and 3 frames, the shorter ones padded
        action = action_vectors(batch["action"], batch["is_last"], SPEC.action)[:, t : t + 1]
        future = model.imagine(at(state, t), action)
        total = total + (model.feature_map(future)[:, 0, 0] - h[:, t]).abs().mean() / 3
    torch.testing.assert_close(total, model.losses(batch)["prediction"], rtol=1e-5, atol=1e-6)


def test_nothing_is_carried_into_the_next_episode():
    model, batch = small(), batch_of(t=8)
    batch["is_first"][:, 4] = True
    batch["is_last"][:, 3] = True
    changed = batch | {"frames": batch["frames"].clone(), "action": batch["action"].clone()}
    changed["frames"][:, :4] = 255 - changed["frames"][:, :4]
    for t in range(4, 7):
        ours, other = (at(model.observe(b), t) for b in (batch, changed))
        assert torch.equal(model.features(ours), model.features(other))
        controls = torch.rand(2, 2, 3, generator=torch.Generator().manual_seed(t))
        futures = [model.features(model.imagine(state, controls)) for state in (ours, other)]
        assert torch.equal(*futures)


def test_transitions_between_episodes_are_not_learned():
    model = small()
    batch = batch_of(t=4)
    batch["is_first"][:, 3] = True  # the only target of the last transition, and of the rollout's last step
    changed = batch | {"frames": batch["frames"].clone()}
    changed["frames"][:, 3] = 255 - changed["frames"][:, 3]
    before, after = model.losses(batch), model.losses(changed)
    assert torch.equal(before["prediction"], after["prediction"])
    assert torch.equal(before["rollout"], after["rollout"])


def test_void_action_is_the_zero_vector():
    model, batch = small(), batch_of()
    batch["is_last"][:, 2] = True
    assert model.observe(batch)["action"][:, 3, -1].abs().sum() == 0
    assert model.observe(batch)["action"][:, 4, -1].sum() == 2  # one-hot, in both rows


def test_a_batch_of_one_is_a_row_of_the_batch():
    model, batch = small(), batch_of(b=3)
    row = {key: value[1:2] for key, value in batch.items()}
    controls = torch.rand(3, 3, 3)
    many = model.features(model.imagine(at(model.observe(batch), 4), controls))
    one = model.features(model.imagine(at(model.observe(row), 4), controls[1:2]))
    torch.testing.assert_close(many[1:2], one, rtol=1e-4, atol=1e-5)


def test_continuous_actions_and_history_of_one():
    spec = ExperienceSpec({"frames": (16, 16, 1)}, ActionSpace("continuous", (2,)))
    model = small(spec, predictor={"history": 1, "rollout_steps": 1})
    batch = batch_of() | {"frames": batch_of()["frames"][:, :, :1], "action": torch.rand(2, 7, 2)}
    assert torch.isfinite(scalar(model.losses(batch)))
    future = model.imagine(at(model.observe(batch), 2), torch.rand(2, 3, 2))
    assert model.features(future).shape == (2, 1, 3, 4 * 16) and model.targets(batch).shape == (2, 7, 64)
    assert future["action"].shape == (2, 1, 3, 1, 2)  # the frame before is told, but not looked at


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"encoder": {"patch": 7}}, "not divisible by patches of 7"),
        ({"encoder": {"dim": 15}}, "even width"),
        ({"predictor": {"heads": 8}}, "at least 6"),
        ({"predictor": {"history": 2, "rollout_steps": 3}}, "choose 1 to history = 2"),
    ],
)
def test_sizes_that_do_not_fit_are_one_line(options, message):
    with pytest.raises(UserError, match=message):
        small(**options)


def test_clips_of_one_frame_are_refused():
    with pytest.raises(UserError, match="choose 2 or more"):
        small().losses(batch_of(t=1))


def test_frames_are_needed():
    with pytest.raises(UserError, match="'frames'"):
        small(ExperienceSpec({"vector": (3,)}, ActionSpace("discrete", (3,))))
