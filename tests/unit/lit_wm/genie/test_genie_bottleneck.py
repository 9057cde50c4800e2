"""Continuous latent actions, and latent actions from tokens: what they are compared with is the same model."""

from dataclasses import replace

import pytest
import torch

from lit_wm.errors import UserError
from lit_wm.genie.gaussian_bottleneck import GaussianBottleneck, divergence
from lit_wm.genie.latent_action import LatentActionModel, LatentActionSettings

SMALL = LatentActionSettings(patch=4, dim=16, heads=2, ffn=32, encoder_blocks=2, decoder_blocks=2, latent_dim=8)
FROM_TOKENS = {"input": "tokens", "residual_output": True}


def model(token_dim=None, **options):
    torch.manual_seed(0)
    m = LatentActionModel((3, 8, 12), 6, replace(SMALL, **options), token_dim)
    torch.nn.init.normal_(m.patch_out.weight, std=0.1)
    return m.eval()


def clip(t=6, seed=0):
    return torch.rand(2, t, 3, 8, 12, generator=torch.Generator().manual_seed(seed))


def test_divergence_is_torchs():
    mean, log_variance = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(0))
    law = torch.distributions.Normal(mean, (log_variance / 2).exp())
    expected = torch.distributions.kl_divergence(law, torch.distributions.Normal(0.0, 1.0)).sum(-1)
    torch.testing.assert_close(divergence(mean, log_variance), expected)


def test_draws_in_training_follow_mean_and_variance_and_evaluation_takes_the_mean():
    torch.manual_seed(0)
    bottleneck = GaussianBottleneck(kl=0.5)
    z = torch.tensor([1.0, -2.0, 0.0, 2.0]).expand(20_000, 4)
    passed = bottleneck.train()(z)
    torch.testing.assert_close(passed.vectors.mean(0), torch.tensor([1.0, -2.0]), atol=0.05, rtol=0)
    torch.testing.assert_close(
        passed.vectors.std(0), torch.tensor([1.0, 1.0]) * torch.tensor([0.0, 1.0]).exp(), atol=0.05, rtol=0
    )
    assert torch.equal(passed.codes, z[:, :2])
    torch.testing.assert_close(passed.loss, 0.5 * divergence(z[:1, :2], z[:1, 2:])[0])
    assert torch.equal(bottleneck.eval()(z).vectors, z[:, :2])
    assert torch.equal(bottleneck.embed(bottleneck.encode(z)), z[:, :2])


def test_more_weight_leaves_less_in_the_vectors():
    """The information that passes falls as kl rises: what the vectors know of their own input."""
    kept = []
    for kl in (0.0, 0.01, 1.0):
        torch.manual_seed(0)
        net = torch.nn.Sequential(torch.nn.Linear(2, 4), GaussianBottleneck(kl))
        back = torch.nn.Linear(2, 2)
        optimizer = torch.optim.Adam([*net.parameters(), *back.parameters()], 1e-2)
        for _ in range(300):
            x = torch.randn(256, 2)
            passed = net(x)
            loss = (back(passed.vectors) - x).square().mean() + passed.loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        kept.append(1 - float((back(passed.vectors) - x).square().mean().detach()))
    assert kept[0] > 0.95 and kept[0] > kept[1] > kept[2] + 0.3


def test_an_empty_list_from_a_file_is_an_empty_tuple():
    assert not model(codebook="vae", levels=[]).discrete
    with pytest.raises(UserError, match=r"levels .* codebook 'vae' has no codes"):
        model(codebook="vae", levels=[4, 4])


def test_vectors_for_codes():
    m, x = model(codebook="vae", kl=2e-4), clip()
    vectors = m.encode(x)
    assert vectors.shape == (2, 5, 8) and vectors.is_floating_point()
    changed = x.clone()
    changed[:, 4:] = clip(seed=1)[:, 4:]
    assert torch.equal(m.encode(changed)[:, :3], vectors[:, :3])
    out = m.train()(x)
    assert not torch.equal(out.vectors, m(x).vectors)
    (out.pixel_loss + out.bottleneck_loss).backward()
    assert all(p.grad is not None for p in m.parameters())


def tokens(t=6, seed=0):
    return torch.randn(2, t, 6, 7, generator=torch.Generator().manual_seed(seed))


def test_from_tokens_the_model_sees_no_pixel():
    m, x, z = model(7, **FROM_TOKENS), clip(), tokens()
    assert torch.equal(m.encode(x, z), m.encode(clip(seed=1), z))
    assert torch.equal(m.latents(m.look(x, z)), m.latents(z))
    actions = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(2))
    a, b = (m.decode(frames, actions, z[:, :-1]) - frames for frames in (x[:, :-1], clip(seed=1)[:, :-1]))
    torch.testing.assert_close(a, b)  # x_t only carries the residual
    later = z.clone()
    later[:, 4:] = tokens(seed=1)[:, 4:]
    assert torch.equal(m.encode(x, later)[:, :3], m.encode(x, z)[:, :3])
    changed = m.decode(x[:, :-1], actions, later[:, :-1])
    before = m.decode(x[:, :-1], actions, z[:, :-1])
    assert torch.equal(changed[:, :4], before[:, :4])  # entry t-1 predicts frame t from tokens < t
    assert (changed[:, 4] != before[:, 4]).any()
    out = m.train()(x, z)
    (out.pixel_loss + out.bottleneck_loss).backward()
    assert all(p.grad is not None for p in m.parameters())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"codebook": "vae", "kmeans_start": True}, "kmeans_start .* codebook 'vae' has no codes: leave it out"),
        ({"codebook": "vae", "decay": 0.9}, "decay of the latent action model is 0.9, but codebook 'vae' has no codes"),
        ({"codebook": "vae", "codes": 6}, "codes of the latent action model is 6, but codebook 'vae' has no codes"),
        ({"kl": 0.1}, "kl of the latent action model is 0.1, but codebook 'vae' alone reads it"),
        ({"input": "tokens", "shift": 4}, "shift of the latent action model is 4, but it sees tokens"),
        ({"input": "sound"}, "input of the latent action model 'sound' is not one of pixels, tokens"),
    ],
)
def test_settings_that_nothing_reads(options, message):
    with pytest.raises(UserError, match=message):
        model(7, **options)
