"""The ST-transformer: causal in time, free in space, step by step as at once, and of the size the structure says."""

import pytest
import torch

from lit_wm.genie.st_transformer import STBlock, STTransformer


def made(attention="factored", qk_norm=False):
    torch.manual_seed(0)
    sizes = {"frames": 6, "dim": 16, "heads": 2, "ffn": 24, "blocks": 2}
    return STTransformer((2, 3), **sizes, attention=attention, qk_norm=qk_norm).eval()


@pytest.fixture
def model():
    return made()


def clip(b=2, t=6, n=6, d=16):
    return torch.randn(b, t, n, d, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("attention", ["factored", "full"])
def test_a_frame_changes_nothing_before_it_and_everything_in_it(attention):
    model, x = made(attention), clip()
    changed = x.clone()
    changed[:, 3, 0] *= -3
    a, b = model(x), model(changed)
    assert torch.equal(a[:, :3], b[:, :3])
    assert (a[:, 3:] != b[:, 3:]).any(-1).all()  # all places of frame 3, and of the frames that remember it


def test_frames_by_themselves_know_neither_each_other_nor_the_time():
    model, x = made("space"), clip()
    order = [3, 1, 0, 5, 4, 2]
    assert torch.allclose(model(x)[:, order], model(x[:, order]), atol=1e-6)
    changed = x.clone()
    changed[:, 3, 0] *= -3
    moved = (model(x) != model(changed)).any(-1)
    assert moved[:, 3].all() and not moved[:, [0, 1, 2, 4, 5]].any()


def test_full_attention_sees_the_whole_past_at_once():
    """In one block, a change at one place of the first frame reaches every place of the last."""
    torch.manual_seed(0)
    one = {kind: STTransformer((2, 3), 6, 16, 2, 24, 1, attention=kind).eval() for kind in ("full", "factored")}
    one["factored"].blocks[0].space.proj.weight.data.zero_()  # which in one block comes before time
    x = clip()
    changed = x.clone()
    changed[:, 0, 2] *= -3
    moved = {kind: (model(x) != model(changed)).any(-1)[:, 5] for kind, model in one.items()}
    assert moved["full"].all() and moved["factored"].sum(1).tolist() == [1, 1]


def test_time_attention_sees_one_place_only(model):
    """Without space attention, a change at one place stays at that place."""
    for block in model.blocks:
        torch.nn.init.zeros_(block.space.proj.weight)
    x = clip()
    changed = x.clone()
    changed[:, 0, 2] *= -3
    moved = (model(x) != model(changed)).any(-1)
    assert moved[:, :, 2].all()
    assert not moved[:, :, [0, 1, 3, 4, 5]].any()


@pytest.mark.parametrize(
    ("attention", "qk_norm"), [("factored", False), ("factored", True), ("full", True), ("space", False)]
)
@pytest.mark.parametrize("pieces", [[1] * 6, [3, 1, 2], [5, 1]])
def test_step_by_step_equals_at_once(attention, qk_norm, pieces):
    model, x = made(attention, qk_norm), clip()
    past, seen = None, []
    for piece in x.split(pieces, 1):
        y, past = model.step(piece, past)
        seen.append(y)
    assert torch.allclose(torch.cat(seen, 1), model(x), atol=1e-5)


@pytest.mark.parametrize("attention", ["factored", "full", "space"])
def test_normed_queries_and_keys_have_no_size(attention):
    """However large the projections make them, attention stays as sharp as it was; without the norm it becomes sharper."""
    for qk_norm in (True, False):
        model, x = made(attention, qk_norm), clip()
        before = model(x)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "qkv" in name:
                    queries_and_keys = parameter.unflatten(0, (3, -1))[:2]
                    queries_and_keys *= 10
        assert torch.allclose(model(x), before, atol=1e-4) is qk_norm


def test_a_past_can_be_used_twice(model):
    x = clip()
    _, past = model.step(x[:, :4])
    model.step(x[:, 5:] * 3, past)
    again, _ = model.step(x[:, 4:5], past)
    assert torch.allclose(again, model(x[:, :5])[:, 4:], atol=1e-5)


def test_more_frames_than_positions(model):
    with pytest.raises(ValueError, match="7 frames, but this transformer has positions for 6"):
        model(clip(t=7))
    _, past = model.step(clip())
    with pytest.raises(ValueError, match="7 frames"):
        model.step(clip(t=1), past)


def test_parameters_in_closed_form():
    d, f, blocks = 16, 24, 3
    attention = 3 * d * d + 3 * d + d * d + d
    block = 2 * attention + (d * f + f + f * d + d) + 3 * 2 * d  # two attentions, ONE feed-forward layer, three norms
    assert sum(p.numel() for p in STBlock(d, 2, f).parameters()) == block
    model = STTransformer((2, 3), frames=6, dim=d, heads=2, ffn=f, blocks=blocks)
    assert sum(p.numel() for p in model.parameters()) == blocks * block + 2 * 2 * d
