"""Under bf16-mixed the layers are rounded; states, laws, losses and what is read off them are not."""

import pytest
import torch
from lightning import Trainer
from test_dreamer_module import PIXELS, batch_of, small

from datamodules.experience import ActionSpace, ExperienceSpec
from datamodules.replay import ReplayDataModule
from lit_wm.dreamer import DreamerModule
from lit_wm.dreamer.distributions import twohot_bins, twohot_mean
from lit_wm.dreamer.layers import phases_like

BOTH = ExperienceSpec({"frames": (64, 64, 3), "vector": (5,)}, ActionSpace("discrete", (4,)))


def rounded():
    return torch.autocast("cpu", dtype=torch.bfloat16)


def test_expected_values_keep_their_digits():
    logits = torch.full((4, 255), -30.0)
    logits[range(4), [160, 161, 162, 163]] = 3.0
    logits[range(4), [161, 162, 163, 164]] = torch.linspace(0, 3, 4)
    bins = twohot_bins()
    with rounded():
        value = twohot_mean(logits, bins)
    assert torch.equal(value, twohot_mean(logits, bins)) and value.dtype == torch.float32


def test_states_and_losses_are_of_full_precision():
    model, batch = small(BOTH), batch_of(BOTH)
    with rounded():
        assert model.encoder(batch).dtype == torch.bfloat16, "or this test shows nothing"
        scaled, newer = model.update(batch)
        post = model.filter(batch)
    assert {name: value.dtype for name, value in scaled.items()} == dict.fromkeys(scaled, torch.float32)
    assert newer["deter"].dtype == post.deter.dtype == post.stoch.dtype == post.q.dtype == post.p.dtype == torch.float32


def test_the_picture_loss_is_summed_in_full_precision():
    """It is that of the drawn picture, which alone is rounded."""
    model, batch = small(PIXELS), batch_of(PIXELS)
    with rounded(), torch.no_grad():
        post = model.filter(batch, sample=False)
        loss = model.decoder.losses(post.deter, post.stoch, batch)["frames"]
        drawn = model.decoder.pictures(post.deter, post.stoch)
    assert drawn.dtype == torch.bfloat16
    error = (drawn.float() - batch["frames"] / 255).square().flatten(2).sum(2)
    torch.testing.assert_close(loss, error, rtol=1e-6, atol=1e-3)


@pytest.mark.filterwarnings("ignore")
def test_an_agent_learns_in_mixed_precision():
    data = ReplayDataModule(
        env="CartPole-v1", num_envs=2, batch_size=2, clip_length=4, start_after=4, capacity=200, keep_episodes=False
    )
    sizes = {"deter": 32, "hidden": 8, "classes": 4, "depth": 2, "units": 8}
    model = DreamerModule(data.spec, size_overrides=sizes, imagination_length=3, warmup_steps=0, lr=1e-3)
    before = model.actor.out.weight.clone()
    trainer = Trainer(
        accelerator="cpu", precision="bf16-mixed", max_steps=3, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(model, datamodule=data)
    assert trainer.global_step == 3 and not torch.equal(before, model.actor.out.weight)
    assert model.actor.out.weight.dtype == torch.float32


def test_a_model_that_was_judged_can_be_trained():
    """What is made once and kept must not be made for inference alone."""
    model, batch = small(PIXELS), batch_of(PIXELS)
    phases_like.cache_clear()
    with torch.inference_mode():
        model.decode(model.observe(batch))
    losses = model.losses(batch)
    sum(value for name, value in losses.items() if not name.startswith("_")).backward()
