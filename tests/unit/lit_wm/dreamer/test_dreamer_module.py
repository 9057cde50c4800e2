"""DreamerModule: published sizes, causality, what the losses may and may not touch."""

from types import SimpleNamespace

import pytest
import torch

from datamodules.experience import ActionSpace, ExperienceSpec
from lit_wm.contract import WorldModelContract, at
from lit_wm.dreamer import DreamerModule
from lit_wm.dreamer.latents import CategoricalLatents
from lit_wm.dreamer.rssm import RSSM
from lit_wm.dreamer.sizes import BLOCKS, PRESETS, Size
from lit_wm.errors import UserError

COUNTS = {
    "size1m": 686_456,
    "size12m": 10_492_616,
    "size25m": 23_487_016,
    "size50m": 41_646_984,
    "size100m": 93_463_624,
    "size200m": 165_942_536,
    "size400m": 372_887_176,
}
PIXELS = ExperienceSpec({"frames": (64, 64, 3)}, ActionSpace("discrete", (6,)))
SMALL = {"deter": 64, "hidden": 16, "classes": 4, "depth": 2, "units": 16, "stoch": 8}


def batch_of(spec: ExperienceSpec, b: int = 2, t: int = 6, seed: int = 0) -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    batch = {"reward": torch.randn(b, t, generator=g)}
    batch |= {key: torch.zeros(b, t, dtype=torch.bool) for key in ("is_first", "is_last", "is_terminal")}
    for key in spec.pictures:
        h, w, c = spec.observations[key]
        batch[key] = torch.randint(0, 256, (b, t, c, h, w), generator=g).to(torch.uint8)
    for key in spec.vectors:
        batch[key] = torch.randn(b, t, *spec.observations[key], generator=g)
    if spec.action.kind == "continuous":
        batch["action"] = torch.rand(b, t, *spec.action.shape, generator=g) * 2 - 1
    else:
        shape = (b, t, *spec.action.shape)
        batch["action"] = (torch.rand(shape, generator=g) * torch.tensor(spec.action.sizes).view(-1)).long().view(shape)
    return batch


def small(spec: ExperienceSpec = PIXELS, **options) -> DreamerModule:
    torch.manual_seed(0)
    return DreamerModule(spec.to_dict(), size_overrides=SMALL, **options)


@pytest.mark.parametrize("size", COUNTS)
def test_published_parameter_counts(size):
    with torch.device("meta"):  # shapes without memory
        model = DreamerModule(PIXELS.to_dict(), size=size)
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == COUNTS[size]
    assert COUNTS.keys() == PRESETS.keys()


def test_published_parameter_counts_by_part_and_for_walker():
    model = DreamerModule(PIXELS.to_dict())
    parts = {
        "encoder": 14_304,
        "rssm": 376_704,
        "decoder": 80_595,
        "reward": 57_663,
        "cont": 41_153,
        "actor": 49_926,
        "critic": 66_111,
    }
    assert {name: sum(p.numel() for p in getattr(model, name).parameters()) for name in parts} == parts
    walker = DreamerModule(ExperienceSpec({"vector": (24,)}, ActionSpace("continuous", (6,))).to_dict())
    assert sum(p.numel() for p in walker.parameters() if p.requires_grad) == 640_867


def test_it_answers_the_contract():
    assert isinstance(small(), WorldModelContract)


def test_the_core_equals_its_plain_form():
    """The hoisted, densified product against the paper's: every block sees its slice of deter and all three branches."""
    torch.manual_seed(0)
    size = Size(**SMALL)
    rssm = RSSM(size, 5, 10, CategoricalLatents(size.stoch, size.classes, 0.01)).double()
    deter, action = torch.randn(3, 64).double(), torch.randn(3, 5).double() * 2
    stoch = torch.randn(3, 8, 4).double()
    branches = torch.cat(
        [
            rssm.in_deter_norm(rssm.in_deter(deter)),
            rssm.in_stoch_norm(rssm.in_stoch(stoch.flatten(1))),
            rssm.in_action_norm(rssm.in_action(action / action.abs().clamp_min(1))),
        ],
        1,
    )
    x = torch.cat([deter.view(3, BLOCKS, -1), branches.unsqueeze(1).expand(-1, BLOCKS, -1)], -1)
    gates = rssm.gates(rssm.hidden_norm(rssm.hidden(x.flatten(1)))).view(3, BLOCKS, -1)
    reset, candidate, update = (g.reshape(3, -1) for g in gates.chunk(3, -1))
    update = torch.sigmoid(update - 1)
    expected = update * torch.tanh(torch.sigmoid(reset) * candidate) + (1 - update) * deter
    torch.testing.assert_close(rssm.core(deter, stoch, rssm.embed_actions(action)), expected)


def test_the_future_changes_no_state():
    model, batch = small().eval(), batch_of(PIXELS)
    before = model.observe(batch)
    changed = {key: value.clone() for key, value in batch.items()}
    changed["frames"][:, 4:] = 255 - changed["frames"][:, 4:]
    changed["action"][:, 4:] = (changed["action"][:, 4:] + 1) % 6
    after = model.observe(changed)
    for key in before:
        assert torch.equal(before[key][:, :4], after[key][:, :4])
        assert not torch.equal(before[key][:, 4:], after[key][:, 4:])


def test_the_action_moves_the_next_state_and_not_its_own():
    model, batch = small().eval(), batch_of(PIXELS)
    changed = {key: value.clone() for key, value in batch.items()}
    changed["action"][:, 2] = (changed["action"][:, 2] + 1) % 6
    before, after = model.observe(batch)["deter"], model.observe(changed)["deter"]
    assert torch.equal(before[:, :3], after[:, :3]) and not torch.equal(before[:, 3], after[:, 3])


def test_a_new_episode_forgets_the_old_one():
    model, batch = small().eval(), batch_of(PIXELS)
    batch["is_first"][:, 3] = True
    changed = {key: value.clone() for key, value in batch.items()}
    changed["frames"][:, :3] = 255 - changed["frames"][:, :3]
    changed["action"][:, :3] = (changed["action"][:, :3] + 1) % 6
    before, after = model.observe(batch), model.observe(changed)
    for key in before:
        assert torch.equal(before[key][:, 3:], after[key][:, 3:])


def test_imagination_samples_by_temperature_and_seed():
    model, batch = small().eval(), batch_of(PIXELS)
    state, actions = at(model.observe(batch), 3), torch.eye(6)[torch.tensor([[0, 1], [2, 3]])]
    sampled = model.imagine(state, actions, samples=3, generator=torch.Generator().manual_seed(1))
    again = model.imagine(state, actions, samples=3, generator=torch.Generator().manual_seed(1))
    assert sampled["stoch"].shape == (2, 3, 2, 8, 4) and torch.equal(sampled["stoch"], again["stoch"])
    assert not torch.equal(sampled["stoch"][:, 0], sampled["stoch"][:, 1])
    modes = model.imagine(state, actions, samples=2, temperature=0)
    assert torch.equal(modes["deter"][:, 0], modes["deter"][:, 1])
    assert model.decode(sampled).shape == (2, 3, 2, 3, 64, 64)


def test_of_several_pictures_it_decodes_the_frames_alone():
    spec = ExperienceSpec({"wrist": (64, 64, 3), "frames": (64, 64, 3), "depth": (64, 64, 1)}, PIXELS.action)
    model = small(spec).eval()
    state = model.observe(batch_of(spec))
    stacked = model.decoder.pictures(state["deter"], state["stoch"])
    assert stacked.shape == (2, 6, 7, 64, 64), "depth, frames, wrist: in sorted order"
    assert torch.equal(model.decode(state), stacked[:, :, 1:4])
    for other in (
        ExperienceSpec({"camera": (64, 64, 3)}, PIXELS.action),
        ExperienceSpec({"vector": (4,)}, PIXELS.action),
    ):
        model = small(other).eval()
        assert model.decode(model.observe(batch_of(other))) is None


def test_behavior_losses_stay_out_of_the_world_model_and_repval_enters_it():
    model, batch = small(), batch_of(PIXELS)
    post = model.filter(batch)
    losses, _ = model.behavior_losses(post, batch)

    def touched(loss: torch.Tensor) -> set[str]:
        model.zero_grad()
        loss.mean().backward(retain_graph=True)
        return {n.split(".")[0] for n, p in model.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}

    with torch.no_grad():  # heads that start at zero would hide a gradient
        for head in (model.critic, model.slow_critic, model.reward):
            head.out.weight.normal_(std=0.1)
    losses, _ = model.behavior_losses(post, batch)
    assert touched(losses["policy"]) == {"actor"}
    assert touched(losses["value"]) == {"critic"}
    assert touched(losses["repval"]) == {"critic", "rssm", "encoder"}


def test_kl_terms_train_the_right_side_and_stop_below_the_free_nats():
    model, batch = small(), batch_of(PIXELS)
    losses = model.world_model_losses(model.filter(batch), batch)
    model.zero_grad()
    losses["dyn"].sum().backward(retain_graph=True)
    assert model.rssm.prior[1].weight.grad.abs().sum() > 0 and model.rssm.posterior_out.weight.grad is not None
    free = small(free_nats=1e9)
    losses = free.world_model_losses(free.filter(batch), batch)
    (losses["dyn"] + losses["rep"]).sum().backward()
    assert all(p.grad is None or p.grad.abs().sum() == 0 for p in free.parameters())


def test_a_training_step_needs_no_state_and_names_a_missing_reward():
    model, batch = small(), batch_of(PIXELS)
    assert "state" not in batch and all(torch.isfinite(v) for v in model.losses(batch).values())
    del batch["reward"]
    with pytest.raises(UserError, match="'reward'"):
        model.check_batch(batch)


@pytest.mark.parametrize(
    "spec",
    [
        ExperienceSpec({"frames": (64, 64, 3), "vector": (5,)}, ActionSpace("multi_discrete", (3, 2))),
        ExperienceSpec({"vector": (4,)}, ActionSpace("continuous", (2,))),
        ExperienceSpec({"a": (64, 64, 1), "b": (64, 64, 3)}, ActionSpace("discrete", (4,))),
    ],
)
def test_other_observations_and_actions(spec):
    model = small(spec)
    losses = model.losses(batch_of(spec))
    sum(v for k, v in losses.items() if not k.startswith("_")).backward()
    assert {f"rec_{key}" for key in spec.observations} <= losses.keys()
    silent = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert not silent


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": "size2m"}, "size2m"),
        ({"size_overrides": {"deter": 100}}, "not divisible"),
        ({"size_overrides": {"depth": 3}}, "even"),
        ({"size_overrides": {"width": 100}}, "size_overrides"),
        ({"loss_scales": {"kl": 1.0}}, "'kl'"),
    ],
)
def test_options_it_cannot_read_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        DreamerModule(PIXELS.to_dict(), **options)


def test_pictures_it_cannot_halve_are_refused():
    with pytest.raises(UserError, match="32x32"):
        small(ExperienceSpec({"frames": (32, 32, 3)}, ActionSpace("discrete", (5,))))


def test_the_first_update_has_rate_zero_and_warms_up_from_there():
    configured = small(lr=1.0, warmup_steps=4).configure_optimizers()
    optimizer, schedule = configured["optimizer"], configured["lr_scheduler"]["scheduler"]
    rates = []
    for _ in range(6):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert rates == [0, 0.25, 0.5, 0.75, 1, 1]
    constant = small(lr=1.0, warmup_steps=0).configure_optimizers()
    assert constant["optimizer"].param_groups[0]["lr"] == 1


def test_the_rate_may_fall_to_zero_at_the_end_of_the_run():
    model = small(lr=1.0, warmup_steps=2, decay_steps=4)
    model._trainer = SimpleNamespace(max_steps=8)
    configured = model.configure_optimizers()
    optimizer, schedule = configured["optimizer"], configured["lr_scheduler"]["scheduler"]
    rates = []
    for _ in range(9):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert rates == [0, 0.5, 1, 1, 1, 0.75, 0.5, 0.25, 0]
    for length in (-1, 3):
        model._trainer = SimpleNamespace(max_steps=length)
        with pytest.raises(UserError, match="decay_steps is 4"):
            model.configure_optimizers()


def test_the_loss_falls_on_one_batch():
    model, batch = small(lr=3e-3, warmup_steps=1), batch_of(PIXELS)
    configured = model.configure_optimizers()
    optimizer, schedule = configured["optimizer"], configured["lr_scheduler"]["scheduler"]
    first = None
    for _ in range(25):
        total = sum(v for k, v in model.losses(batch).items() if k.startswith("rec"))
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        schedule.step()
        first = first or total.item()
    assert total.item() < 0.9 * first


def test_settings_of_the_optimizer_reach_it():
    (group,) = small(lr=0.01, beta2=0.9, agc=0.2).configure_optimizers()["optimizer"].param_groups
    assert (group["initial_lr"], group["betas"], group["clip"]) == (0.01, (0.9, 0.9), 0.2)
    (group,) = small().configure_optimizers()["optimizer"].param_groups
    assert (group["initial_lr"], group["betas"], group["clip"]) == (4e-5, (0.9, 0.999), 0.3)  # the reference's


def test_the_recurrent_core_equals_its_plain_form_with_gradients():
    """The block-diagonal map on what every block reads, and the gates as DreamerV3 writes them."""
    model = small().double().rssm
    n, d, width = 3, SMALL["deter"], SMALL["deter"] // BLOCKS
    deter, stoch = torch.randn(n, d, dtype=torch.float64), torch.randn(n, SMALL["stoch"], SMALL["classes"]).double()
    action = torch.randn(n, SMALL["hidden"], dtype=torch.float64)
    inputs = [x.requires_grad_() for x in (deter, stoch, action)]

    def plain() -> torch.Tensor:
        own = model.in_deter_norm(model.in_deter(deter)), model.in_stoch_norm(model.in_stoch(stoch.flatten(1)))
        shared = torch.cat([*own, action], 1).unsqueeze(1).expand(-1, BLOCKS, -1)
        hidden = model.hidden_norm(model.hidden(torch.cat([deter.view(n, BLOCKS, -1), shared], 2).flatten(1)))
        gates = model.gates(hidden).view(n, BLOCKS, 3, width)
        reset, candidate, update = (gate.flatten(1) for gate in gates.unbind(2))
        update = torch.sigmoid(update - 1)
        return update * torch.tanh(torch.sigmoid(reset) * candidate) + (1 - update) * deter

    torch.testing.assert_close(model.core(*inputs), plain())
    learned = [*inputs, model.in_deter.weight, model.hidden.weight, model.hidden.bias, model.gates.weight]
    weight = torch.randn(n, d, dtype=torch.float64)
    found = torch.autograd.grad((model.core(*inputs) * weight).sum(), learned)
    torch.testing.assert_close(found, torch.autograd.grad((plain() * weight).sum(), learned))


def test_accumulated_batches_move_the_range_of_returns_as_far_as_one():
    from lightning import Trainer

    model = small(PIXELS)
    for batches in (1, 4):
        model.trainer = Trainer(
            accelerator="cpu", accumulate_grad_batches=batches, logger=False, enable_checkpointing=False
        )
        model.on_train_epoch_start()
        assert model.normalizer.rate == 0.01 / batches


def test_losses_of_two_batches_may_be_summed_before_one_backward():
    """What is imagined for one of them is not written over by the other; training steps, one after the other, share memory."""
    model = small().train()

    def total(seed):
        torch.manual_seed(seed)
        return sum(value for name, value in model.losses(batch_of(PIXELS, seed=seed)).items() if name[0] != "_")

    def gradients(*losses):
        model.zero_grad()
        for loss in losses:
            loss.backward()
        return [p.grad.clone() for p in model.parameters() if p.grad is not None]

    buffers = {name: value.clone() for name, value in model.named_buffers()}
    together = gradients(total(0) + total(1))
    for name, value in model.named_buffers():
        value.copy_(buffers[name])
    for one, two in zip(together, gradients(total(0), total(1)), strict=True):
        torch.testing.assert_close(one, two)


def test_a_training_step_imagines_in_the_memory_of_the_one_before():
    model, places = small().train(), set()
    model.log = model.log_dict = lambda *args, **kwargs: None
    for seed in range(3):
        model.training_step(batch_of(PIXELS, seed=seed), seed).backward()
        places.add(model._room.data_ptr())
    assert len(places) == 1
