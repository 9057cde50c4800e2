"""The video tokenizer: causal both ways, windows over long clips, and its size."""

from dataclasses import replace

import pytest
import torch

from lit_wm.errors import UserError
from lit_wm.genie.tokenizer import TokenizerSettings, VideoTokenizer, causal_windows

SMALL = TokenizerSettings(patch=4, dim=16, heads=2, ffn=32, encoder_blocks=2, decoder_blocks=1, codes=32, latent_dim=8)


@pytest.fixture
def tokenizer():
    torch.manual_seed(0)
    return VideoTokenizer((3, 8, 12), frames=6, settings=SMALL).eval()


def clip(t=6, seed=0):
    return torch.rand(2, t, 3, 8, 12, generator=torch.Generator().manual_seed(seed))


def test_tokens_and_pictures_depend_on_nothing_later(tokenizer):
    x = clip()
    changed = x.clone()
    changed[:, 4:] = clip(seed=1)[:, 4:]
    assert torch.equal(tokenizer.latents(x)[:, :4], tokenizer.latents(changed)[:, :4])
    a, b = tokenizer.encode(x), tokenizer.encode(changed)
    assert a.shape == (2, 6, 6)
    assert torch.equal(a[:, :4], b[:, :4])
    assert not torch.equal(a[:, 4:], b[:, 4:])

    changed = a.clone()
    changed[:, 4:] = (a[:, 4:] + 1) % 32
    pictures, others = tokenizer.decode(a), tokenizer.decode(changed)
    assert pictures.shape == x.shape
    assert torch.equal(pictures[:, :4], others[:, :4])
    assert not torch.equal(pictures[:, 4:], others[:, 4:])
    assert 0 <= pictures.min() <= pictures.max() <= 1


def test_the_past_matters(tokenizer):
    """Without the temporal path this would be a plain ViT tokenizer."""
    x = clip()
    changed = x.clone()
    changed[:, 0] = 1 - changed[:, 0]
    assert not torch.equal(tokenizer.latents(x)[:, 1:], tokenizer.latents(changed)[:, 1:])
    tokens = tokenizer.encode(x)
    changed = tokens.clone()
    changed[:, 0] = (tokens[:, 0] + 1) % 32
    assert not torch.equal(tokenizer.decode(tokens)[:, 5], tokenizer.decode(changed)[:, 5])


def test_the_kinds_of_the_papers_comparison():
    torch.manual_seed(0)
    made = {k: VideoTokenizer((3, 8, 12), 6, replace(SMALL, kind=k)).eval() for k in ("st_vivit", "c_vivit", "vit")}
    x = clip()
    changed = x.clone()
    changed[:, 2] = 1 - changed[:, 2]
    moved = {k: (t.latents(x) != t.latents(changed)).flatten(2).any(-1)[0].tolist() for k, t in made.items()}
    later = [False, False, True, True, True, True]
    assert moved == {"st_vivit": later, "c_vivit": later, "vit": [False, False, True, False, False, False]}
    tokens = made["vit"].encode(x)
    assert torch.allclose(made["vit"].decode(tokens)[:, 4:5], made["vit"].decode(tokens[:, 4:5]), atol=1e-6)
    with pytest.raises(UserError, match=r"tokenizer\.kind 'mae' is not one of st_vivit, c_vivit, vit"):
        VideoTokenizer((3, 8, 12), 6, replace(SMALL, kind="mae"))


@pytest.mark.parametrize("length", [1, 5, 6, 7, 20])
def test_windows_cover_every_frame_once_with_enough_past(length):
    kept = []
    for start, keep, stop in causal_windows(length, 6):
        assert stop - start <= 6
        assert start == keep == 0 or keep - start >= 2
        kept += range(keep, stop)
    assert kept == list(range(length))
    longer = causal_windows(length + 9, 6)
    assert [w[:2] for w in causal_windows(length, 6)] == [w[:2] for w in longer][: len(causal_windows(length, 6))]


def test_long_clips_are_tokenized_causally(tokenizer):
    x = clip(t=15)
    changed = x.clone()
    changed[:, 10:] = 1 - changed[:, 10:]
    a, b = tokenizer.encode(x), tokenizer.encode(changed)
    assert a.shape == (2, 15, 6)
    assert torch.equal(a[:, :10], b[:, :10])
    assert torch.equal(a[:, :6], tokenizer.encode(x[:, :6]))


def test_losses(tokenizer):
    tokenizer.train()
    x = clip()
    out = tokenizer(x)
    assert torch.equal(out.pixel_loss, (out.frames - x).square().mean())
    (out.pixel_loss + out.vq_loss).backward()
    assert all(p.grad is not None for p in tokenizer.parameters())


def test_a_continuous_warm_up_leaves_the_codebook_alone_and_quantises_nothing():
    torch.manual_seed(0)
    tokenizer = VideoTokenizer((3, 8, 12), 6, replace(SMALL, codebook="ema", kmeans_start=True)).train()
    before = {name: x.clone() for name, x in tokenizer.quantizer.state_dict().items()}
    x = clip()
    out = tokenizer(x, continuous=True)
    assert out.vq_loss == 0
    assert torch.equal(out.frames, tokenizer.decode_vectors(tokenizer.latents(x)))
    after = tokenizer.quantizer.state_dict()
    changed = {name for name in after if not torch.equal(after[name], before[name])}
    assert changed == {"recent", "recorded"}  # for k-means to start from
    tokenizer(x)
    assert not torch.equal(tokenizer.quantizer.codebook, before["codebook"])


def test_the_foreground_is_what_differs_from_the_mean_picture():
    torch.manual_seed(0)
    tokenizer = VideoTokenizer((3, 8, 12), 6, replace(SMALL, foreground_weight=5.0)).train()
    x = torch.full((2, 6, 3, 8, 12), 0.2)
    x[0, 0, :, 0, 0] = 1.0
    out = tokenizer(x)
    error = (out.frames - x).square()
    weighted = error.sum() + 5 * error[..., 0, 0].sum()  # there the mean picture is 0.27, which no frame is
    torch.testing.assert_close(out.pixel_loss, weighted / error.numel())


def test_parameters_in_closed_form(tokenizer):
    d, pixels, latent, codes = 16, 4 * 4 * 3, 8, 32
    block = 2 * (4 * d * d + 4 * d) + (2 * d * 32 + 32 + d) + 6 * d
    transformers = 3 * block + 2 * 2 * 2 * d
    projections = (pixels * d + d) + (d * latent + latent) + (latent * d + d) + (d * pixels + pixels)
    assert sum(p.numel() for p in tokenizer.parameters()) == transformers + projections + codes * latent


def test_a_patch_that_does_not_divide_the_picture():
    with pytest.raises(ValueError, match="8x12 picture is not divisible by patches of 5"):
        VideoTokenizer((3, 8, 12), 6, TokenizerSettings(patch=5))
