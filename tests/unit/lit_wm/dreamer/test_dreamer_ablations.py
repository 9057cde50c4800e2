"""The paper's ablations are one key each: what each switch changes, and that it changes nothing else."""

import pytest
import torch
from test_dreamer_module import PIXELS, batch_of, small
from torch.distributions import Normal, kl_divergence

from datamodules.experience import ActionSpace, ExperienceSpec
from lit_wm.dreamer.decoder import foreground
from lit_wm.dreamer.distributions import symlog
from lit_wm.dreamer.latents import CategoricalLatents, GaussianLatents
from lit_wm.errors import UserError

VECTOR = ExperienceSpec({"vector": (5,)}, ActionSpace("discrete", (4,)))


def terms(model, batch):
    torch.manual_seed(1)
    return model.losses(batch)


def moved(model, loss):
    """Parts of the model that a loss sends a gradient into."""
    model.zero_grad()
    loss.backward()
    return {n.split(".")[0] for n, p in model.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}


def speaking(**options):
    """A model whose zero-initialised heads have been moved, so that they send gradients."""
    model = small(VECTOR, **options)
    torch.manual_seed(2)
    with torch.no_grad():
        for head in (model.reward, model.critic, model.slow_critic):
            head.out.weight.normal_(std=0.1)
    return model


def test_every_switch_changes_only_the_terms_it_names():
    batch = batch_of(VECTOR)
    batch["reward"] *= 5
    plain = {k: v for k, v in terms(speaking(), batch).items() if not k.startswith("_")}
    for options, changed in (
        ({"kl": "plain"}, {"rep"}),  # the value of dyn is the same, and so only rep is gone
        ({"free_nats": 0.0}, {"dyn", "rep"}),
        ({"reconstruction_gradient": False}, set()),
        ({"value_gradient": False}, set()),
        ({"entropy": 0.1}, {"policy"}),
    ):
        now = {k: v for k, v in terms(speaking(**options), batch).items() if not k.startswith("_")}
        differ = {k for k in plain if k not in now or not torch.equal(plain[k], now[k])}
        assert differ == changed, options


def test_the_plain_kl_trains_both_sides():
    model, batch = speaking(kl="plain", free_nats=0.0), batch_of(VECTOR)
    post = model.filter(batch)
    assert "rep" not in model.world_model_losses(post, batch)
    post.q.retain_grad(), post.p.retain_grad()
    model.world_model_losses(post, batch)["dyn"].sum().backward()
    assert post.q.grad.abs().sum() > 0 and post.p.grad.abs().sum() > 0


def test_gradients_of_reconstruction_stay_out_of_the_world_model():
    for on, parts in ((True, {"encoder", "rssm", "decoder"}), (False, {"decoder"})):
        model, batch = speaking(reconstruction_gradient=on), batch_of(VECTOR)
        assert moved(model, terms(model, batch)["rec_vector"]) == parts


@pytest.mark.parametrize("term", ["rew", "con", "repval"])
def test_gradients_of_reward_and_value_stay_out_of_the_world_model(term):
    own = {"rew": "reward", "con": "cont", "repval": "critic"}[term]
    for on, parts in ((True, {"encoder", "rssm", own}), (False, {own})):
        model, batch = speaking(value_gradient=on), batch_of(VECTOR)
        assert moved(model, terms(model, batch)[term]) == parts


def test_without_symlog_vectors_are_taken_as_they_are():
    batch = batch_of(VECTOR)
    squashed = batch | {"vector": symlog(batch["vector"])}
    for with_symlog, without in ((batch, squashed),):
        a = terms(speaking(), with_symlog)
        b = terms(speaking(symlog=False), without)
        assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_mean_squared_error_starts_at_zero_and_learns_the_mean():
    model, batch = small(VECTOR, regression="mse"), batch_of(VECTOR)
    assert model.losses(batch)["rew"].item() == pytest.approx(float(batch["reward"].square().mean()))
    x = torch.randn(64, model.rssm.size.feature)
    optimizer = torch.optim.Adam(model.reward.parameters(), 1e-2)
    for _ in range(200):
        loss = model.reward.loss(model.reward(x), torch.full((64,), 3.0)).mean()
        optimizer.zero_grad(), loss.backward(), optimizer.step()
    assert model.reward.mean(model.reward(x)).mean().item() == pytest.approx(3, abs=0.05)


def test_the_foreground_is_what_differs_from_the_median_picture():
    frames = torch.full((5, 1, 1, 4), 100, dtype=torch.uint8)
    frames[0, ..., 1], frames[3, ..., 2], frames[:3, ..., 3] = (
        255,
        110,
        0,
    )  # rarely bright; hardly different; mostly dark
    assert foreground(frames).squeeze().nonzero().tolist() == [[0, 1], [3, 3], [4, 3]]


def test_pixels_of_the_foreground_weigh_more():
    batch = batch_of(PIXELS)
    batch["frames"][:] = 30
    batch["frames"][0, 2, :, 10:12, 20:22] = 200  # 12 values
    model = small(PIXELS)
    post = model.filter(batch, sample=False)
    plain = model.decoder.losses(post.deter, post.stoch, batch)["frames"]
    model.decoder.foreground_weight = 9.0
    weighted = model.decoder.losses(post.deter, post.stoch, batch)["frames"]
    error = (model.decoder.pictures(post.deter, post.stoch)[0, 2, :, 10:12, 20:22] - 200 / 255).square().sum()
    torch.testing.assert_close(weighted[0, 2], plain[0, 2] + 9 * error)
    weighted[0, 2] = plain[0, 2]
    assert torch.equal(weighted, plain)


def test_returns_that_are_not_normalised():
    batch = batch_of(VECTOR)
    losses = {}
    for normalised in (True, False):
        model = speaking(normalize_returns=normalised, entropy=0.0)
        model.normalizer.high.fill_(50.0)
        losses[normalised] = terms(model.eval(), batch)["policy"].item()  # in evaluation the range stays where it is
    assert losses[False] == pytest.approx(50 * losses[True], rel=1e-5)


def test_no_unimix_is_the_softmax():
    raw = torch.randn(3, 8 * 4)
    assert torch.equal(CategoricalLatents(8, 4, 0.0).law(raw), raw.view(3, 8, 4).log_softmax(-1))
    mixed = CategoricalLatents(8, 4, 0.01).law(raw * 100).exp()
    assert mixed.min() >= 0.01 / 4 - 1e-7 and small(VECTOR, unimix=0.2).rssm.latents.unimix == 0.2


def test_gaussian_latents_answer_as_their_distributions_do():
    latents = GaussianLatents(6)
    q, p = latents.law(torch.randn(4, 12)), latents.law(torch.randn(4, 12))
    normal_q, normal_p = Normal(*q.unbind(-1)), Normal(*p.unbind(-1))
    torch.testing.assert_close(latents.kl(q, p), kl_divergence(normal_q, normal_p).sum(-1))
    torch.testing.assert_close(latents.entropy(q), normal_q.entropy().sum(-1))
    noise = latents.noise((20_000, 4), q, torch.Generator().manual_seed(0))
    drawn = latents.sample(q, noise).squeeze(-1)
    torch.testing.assert_close(drawn.mean(0), q[..., 0], atol=0.05, rtol=0)
    torch.testing.assert_close(drawn.std(0), q[..., 1], atol=0.05, rtol=0)
    assert torch.equal(latents.sample(q, None).squeeze(-1), q[..., 0])


@pytest.mark.parametrize("latents", [GaussianLatents(6), CategoricalLatents(6, 5, 0.01)])
def test_latents_survive_the_replay(latents):
    law = latents.law(torch.randn(3, latents.outputs))
    z = latents.sample(law, latents.noise((3,), law))
    packed = latents.pack(z)
    shape, dtype = latents.stored
    assert packed.shape == (3, *shape) and packed.numpy().dtype == dtype
    assert torch.equal(latents.unpack(packed, z), z) and z.shape[1:] == latents.shape


@pytest.mark.parametrize("spec", [PIXELS, VECTOR])
def test_a_dreamer_with_gaussian_latents_learns_dreams_and_plays(spec):
    model, batch = small(spec, latents="gaussian"), batch_of(spec)
    total = sum(v for k, v in model.losses(batch).items() if not k.startswith("_"))
    total.backward()
    assert torch.isfinite(total) and all(p.grad is not None for p in model.parameters() if p.requires_grad)
    state = {key: x[:, 2] for key, x in model.observe(batch).items()}
    ahead = model.imagine(state, torch.zeros(2, 3, spec.action.width), samples=2, temperature=0.5)
    assert ahead["stoch"].shape == (2, 2, 3, SMALL_STOCH, 1)


SMALL_STOCH = 8


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"imagination_last": 1}, "imagination_last is 1"),
        ({"kl": "joint"}, "kl 'joint' is not one of balanced, plain"),
        ({"latents": "beta"}, "latents 'beta' is not one of categorical, gaussian"),
        ({"regression": "huber"}, "regression 'huber' is not one of twohot, mse"),
        ({"unimix": 1.0}, "unimix of the dreamer model is 1.0"),
    ],
)
def test_switches_that_mean_nothing_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        small(VECTOR, **options)
