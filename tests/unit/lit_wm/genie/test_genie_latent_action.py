"""The latent action model: what the encoder may see, what the decoder may not, and what each switch does."""

from dataclasses import asdict, replace

import pytest
import torch

from lit_wm.errors import UserError
from lit_wm.genie.latent_action import LatentActionModel, LatentActionSettings, random_shift

SMALL = LatentActionSettings(patch=4, dim=16, heads=2, ffn=32, encoder_blocks=2, decoder_blocks=2, latent_dim=8)
SWITCHES = {"difference_input": True, "decoder_difference": True, "residual_output": True, "pool": "mean"}
SWITCHES |= {"encoder_positions": False}
CONVOLUTION = {**SWITCHES, "pool": "max", "stem": "convolution"}
EITHER = pytest.mark.parametrize("options", [{}, SWITCHES, CONVOLUTION], ids=["paper", "switches", "convolution"])


def model(**options):
    torch.manual_seed(0)
    m = LatentActionModel((3, 8, 12), frames=6, settings=replace(SMALL, **options))
    torch.nn.init.normal_(m.patch_out.weight, std=0.1)  # where it starts at zero, nothing could leak yet
    return m.eval()


def clip(t=6, seed=0):
    return torch.rand(2, t, 3, 8, 12, generator=torch.Generator().manual_seed(seed))


@EITHER
def test_a_code_sees_the_frame_it_leads_to_and_nothing_later(options):
    m, x = model(**options), clip()
    changed = x.clone()
    changed[:, 4:] = clip(seed=1)[:, 4:]
    a, b = m.latents(m.look(x)), m.latents(m.look(changed))
    assert a.shape == (2, 5, 8)
    assert torch.equal(a[:, :3], b[:, :3])  # codes 0..2 lead to frames 1..3
    assert (a[:, 3] != b[:, 3]).any(-1).all()  # code 3 leads to frame 4
    assert torch.equal(m.encode(x)[:, :3], m.encode(changed)[:, :3])


@EITHER
def test_the_decoder_never_sees_its_target(options):
    m, x = model(**options), clip()
    actions = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(2))
    for target in range(1, 6):
        changed = x.clone()
        changed[:, target:] = clip(seed=1)[:, target:]
        a, b = m.decode(x[:, :-1], actions), m.decode(changed[:, :-1], actions)
        assert torch.equal(a[:, :target], b[:, :target])  # entry t-1 predicts frame t
        if target < 5:
            assert (a[:, target] != b[:, target]).any()


def test_the_maximum_does_not_drown_what_one_patch_holds():
    """Of two frames that differ in one patch of six, the pooled numbers differ as that patch's do, not by a sixth of it."""
    m = model(pool="max", encoder_blocks=0, encoder_positions=False)
    x = torch.zeros(1, 2, 3, 8, 12)
    x[:, 1, :, :4, :4] = 1
    tokens_tnd = m.encoder(m.patch_in(m.look(x)))[0]
    still, lit = tokens_tnd[1, 1], tokens_tnd[1, 0]
    assert torch.allclose(m.latents(m.look(x))[0, 0], m.to_latent(torch.maximum(still, lit)), atol=1e-6)
    m.settings = replace(m.settings, pool="mean")
    assert torch.allclose(m.latents(m.look(x))[0, 0], m.to_latent(still + (lit - still) / 6), atol=1e-6)


def test_the_decoder_uses_codes_up_to_now_only():
    m, x = model(), clip()
    actions = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(2))
    changed = actions.clone()
    changed[:, 3] += 1
    a, b = m.decode(x[:, :-1], actions), m.decode(x[:, :-1], changed)
    assert torch.equal(a[:, :3], b[:, :3])
    assert (a[:, 3] != b[:, 3]).any()


def test_long_clips_have_causal_codes():
    m, x = model(), clip(t=15)
    changed = x.clone()
    changed[:, 11:] = 1 - changed[:, 11:]
    a, b = m.encode(x), m.encode(changed)
    assert a.shape == (2, 14)
    assert torch.equal(a[:, :10], b[:, :10])
    assert torch.equal(a[:, :5], m.encode(x[:, :6]))


def test_losses_reach_every_part_and_only_when_asked():
    m, x = model().train(), clip()
    out = m(x)
    assert torch.equal(out.pixel_loss, (out.frames - x[:, 1:]).square().mean())
    (out.pixel_loss + out.bottleneck_loss).backward()
    assert all(p.grad is not None for p in m.parameters())
    blind = model().train()(x, predict_pixels=False)
    assert blind.frames is None
    assert blind.pixel_loss is None


def test_continuous_vectors_are_those_of_the_encoder():
    m, x = model().train(), clip()
    before = m.bottleneck.usage.clone()
    out = m(x, continuous=True)
    assert torch.equal(out.vectors, m.latents(m.look(x)))
    assert out.bottleneck_loss == 0
    assert torch.equal(m.bottleneck.usage, before)
    assert not torch.allclose(m(x).vectors, out.vectors)


def test_noise_lies_on_the_vectors_of_the_warm_up_and_nowhere_else():
    m, x = model(continuous_warmup=1, warmup_noise=0.5).train(), clip().repeat(50, 1, 1, 1, 1)
    latents = m.latents(m.look(x))
    noise = (m(x, continuous=True).vectors - latents).detach()
    assert noise.std() == pytest.approx(0.5 * float(latents.detach().square().mean().sqrt()), rel=0.05)
    assert noise.mean().abs() < 0.1 * noise.std()
    quiet = replace(m.settings, warmup_noise=0.0)
    loud, m.settings = m.settings, quiet
    codes = m(x).codes
    m.settings = loud
    assert torch.equal(m(x).codes, codes)
    assert torch.equal(m.eval()(x, continuous=True).vectors, latents)


def test_noise_without_a_warm_up_is_refused():
    with pytest.raises(UserError, match=r"warmup_noise.*no continuous_warmup"):
        model(warmup_noise=0.5)


def test_frames_of_the_burn_in_teach_nothing():
    x = clip()
    m = model(burn_in=2)
    out = m(x)
    assert out.frames.shape == x[:, 1:].shape
    assert torch.allclose(out.pixel_loss, (out.frames[:, 2:] - x[:, 3:]).square().mean())
    gradient = torch.autograd.grad(out.pixel_loss, out.frames)[0]
    assert not gradient[:, :2].any() and gradient[:, 2:].all()
    with pytest.raises(UserError, match=r"burn_in 5 .* leaves nothing of clips of 6 frames"):
        model(burn_in=5)


def test_residual_output_starts_as_a_copy():
    x = clip()
    torch.manual_seed(0)
    m = LatentActionModel((3, 8, 12), 6, replace(SMALL, residual_output=True))
    assert torch.equal(m(x).frames, x[:, :-1])


def test_a_shift_moves_all_frames_of_a_clip_alike():
    torch.manual_seed(0)
    x = torch.arange(2 * 3 * 1 * 8 * 8).view(2, 3, 1, 8, 8).float()
    moved = random_shift(x, 2)
    assert not torch.equal(moved, x)
    for b in range(2):
        matches = [
            (dy, dx)
            for dy in range(-2, 3)
            for dx in range(-2, 3)
            if torch.equal(moved[b, :, :, 2:6, 2:6], x[b, :, :, 2 + dy : 6 + dy, 2 + dx : 6 + dx])
        ]
        assert len(matches) == 1
    assert torch.equal(random_shift(x, 0), x)


def test_the_shift_is_for_the_encoder_in_training_only():
    m, x = model(shift=3), clip()
    assert torch.equal(m(x).vectors, m(x).vectors)
    m.train()
    torch.manual_seed(0)
    assert not torch.equal(m(x, continuous=True).vectors, m(x, continuous=True).vectors)
    assert m.decode(x, torch.zeros(2, 6, 8)).equal(m.decode(x, torch.zeros(2, 6, 8)))


def test_parameters_in_closed_form():
    d, pixels, latent, codes = 16, 4 * 4 * 3, 8, 8
    block = 2 * (4 * d * d + 4 * d) + (2 * d * 32 + 32 + d) + 6 * d
    expected = 4 * block + 2 * 2 * 2 * d
    expected += (pixels * d + d) + d + (d * latent + latent) + codes * latent  # patches, action token, codes
    expected += (pixels * d + d) + (latent * d + d) + (d * pixels + pixels)  # decoder
    assert sum(p.numel() for p in model().parameters()) == expected
    for pool in ("mean", "max"):
        assert sum(p.numel() for p in model(pool=pool).parameters()) == expected - d


def test_the_defaults_are_the_papers():
    settings = asdict(LatentActionSettings())
    assert (settings["codes"], settings["latent_dim"], settings["patch"]) == (8, 32, 16)
    departures = ["difference_input", "decoder_difference", "shift", "residual_output", "changed_weight"]
    assert (settings["pool"], settings["downsample"], settings["encoder_positions"]) == ("token", 1, True)
    assert settings["stem"] == "linear"
    assert not any(
        settings[name]
        for name in [
            *departures,
            "continuous_warmup",
            "warmup_noise",
            "burn_in",
            "kmeans_start",
            "restart_below",
        ]
    )


def test_downsampled_it_sees_averages():
    m, x = model(downsample=2, patch=2), clip()
    coarse = m.coarse(x)
    assert torch.allclose(coarse[:, :, :, 1, 2], x[:, :, :, 2:4, 4:6].mean((-1, -2)))
    out = m(x)
    assert out.frames.shape == (2, 5, 3, 4, 6)
    assert torch.allclose(out.pixel_loss, (out.frames - coarse[:, 1:]).square().mean())
    block = x.view(2, 6, 3, 4, 2, 6, 2)
    shuffled = block.flip(4, 6).reshape(x.shape)  # other pixels, the same averages
    assert torch.allclose(m.latents(m.look(shuffled)), m.latents(m.look(x)), atol=1e-6)


def test_without_positions_the_encoder_cannot_tell_where():
    m, x = model(encoder_positions=False, pool="mean"), clip()
    moved = x.roll(4, -1)  # by one patch
    assert torch.allclose(m.latents(m.look(moved)), m.latents(m.look(x)), atol=1e-5)
    m = model(pool="mean")
    assert not torch.allclose(m.latents(m.look(moved)), m.latents(m.look(x)), atol=1e-5)


def test_a_pool_that_would_see_nothing_is_refused():
    with pytest.raises(UserError, match="encoder_blocks of the latent action model is 0, but pool 'token'"):
        model(pool="token", encoder_blocks=0)
    model(pool="max", encoder_blocks=0)


def test_unknown_pool():
    with pytest.raises(UserError, match="pool of the latent action model 'min'"):
        model(pool="min")
