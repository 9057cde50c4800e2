"""What I-JEPA's and V-JEPA's masks promise: disjoint, equally long, every place reachable, scale apart from aspect."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_wm.errors import UserError
from lit_wm.jepa.masks import MaskSettings, block_size, draw_mask

IMAGE = MaskSettings()
SHORT = MaskSettings(targets=8, target_scale=(0.15, 0.15), context_scale=(1.0, 1.0), together=True, least_context=1)
LONG = MaskSettings(targets=2, target_scale=(0.7, 0.7), context_scale=(1.0, 1.0), together=True, least_context=1)
OTHERS = {
    "block": MaskSettings(targets=1, target_scale=(0.6, 0.6), context_scale=(1.0, 1.0)),
    "random": MaskSettings(kind="random", targets=1, target_scale=(0.6, 0.6), context_scale=(1.0, 1.0)),
    "rasterized": MaskSettings(kind="quadrants"),
    "short": SHORT,
    "long": LONG,
    "random tube": MaskSettings(kind="random", targets=1, target_scale=(0.9, 0.9), context_scale=(1.0, 1.0), together=True, least_context=1),
    "causal": MaskSettings(targets=8, target_scale=(0.15, 0.15), context_scale=(1.0, 1.0), together=True, context_frames=2, least_context=1),
}  # fmt: skip


def drawn(mask_settings, batch=64, grid=(1, 8, 8), seed=0):
    return draw_mask(mask_settings, batch, grid, torch.Generator().manual_seed(seed))


@settings(deadline=None, max_examples=60)
@given(
    kind=st.sampled_from(["image", *OTHERS]),
    height=st.integers(6, 12),
    width=st.integers(6, 12),
    batch=st.integers(1, 5),
    seed=st.integers(0, 2**31),
)
def test_seen_and_hidden_are_disjoint_sorted_and_inside_the_grid(kind, height, width, batch, seed):
    frames = 1 if kind == "image" else 3
    mask = drawn(IMAGE if kind == "image" else OTHERS[kind], batch, (frames, height, width), seed)
    for context_k, targets_ml in zip(*mask, strict=True):
        hidden = {n for targets_l in targets_ml.tolist() for n in targets_l}
        assert not hidden & set(context_k.tolist())
        for tokens in (context_k, *targets_ml):
            assert tokens.tolist() == sorted(set(tokens.tolist())) and len(tokens)
            assert tokens.min() >= 0 and tokens.max() < frames * height * width


@pytest.mark.parametrize("grid", [(1, 8, 8), (1, 14, 14)], ids=str)
@pytest.mark.parametrize("kind", ["image", *OTHERS])
def test_every_patch_is_context_for_some_and_target_for_others(kind, grid):
    """The released I-JEPA never uses the last row and column, and drops context from the bottom right."""
    if kind == "causal":
        grid = (2, *grid[1:])
    seen, hidden = (torch.zeros(grid[0] * grid[1] * grid[2]) for _ in range(2))
    for seed in range(30):
        mask = drawn(IMAGE if kind == "image" else OTHERS[kind], grid=grid, seed=seed)
        seen += torch.bincount(mask.context_bk.flatten(), minlength=len(seen))
        hidden += torch.bincount(mask.targets_bml.flatten(), minlength=len(hidden))
    assert (hidden > 0).all()
    plane = seen.view(grid)[0]
    if kind in ("block", "long"):  # wherever a block lies that is larger than half of either side, it hides the middle
        edge = grid[1] // 8
        assert (plane[:edge] > 0).all() and (plane[:, -edge:] > 0).all() and plane[grid[1] // 2, grid[2] // 2] == 0
    else:
        assert (seen > 0).all()
    for turned in (plane.flip(0), plane.flip(1), plane.flip(0, 1)):  # no corner or side is preferred
        assert (plane - turned).abs().max() < 0.25 * plane.max()


def test_scale_and_aspect_are_independent():
    """The released I-JEPA uses one draw for both: correlation 1."""
    generator, found = torch.Generator().manual_seed(0), []
    for _ in range(4000):
        mask = draw_mask(IMAGE, 1, (1, 24, 24), generator)
        block = mask.targets_bml[0, 0]
        rows, columns = (block // 24).unique(), (block % 24).unique()
        assert len(rows) * len(columns) == len(block)  # a full rectangle
        found.append((len(block) / 24**2, np.log(len(rows) / len(columns))))
    scale, aspect = np.array(found).T
    assert abs(np.corrcoef(scale, aspect)[0, 1]) < 0.05
    assert scale.min() < 0.155 and scale.max() > 0.195 and aspect.min() < np.log(0.8) and aspect.max() > np.log(1.4)


@pytest.mark.parametrize(
    ("scale", "aspect", "grid", "size"),
    [
        (0.18, 1.0, (14, 14), (6, 6)),
        (0.15, 1.5, (8, 8), (4, 3)),
        (1.0, 1.0, (8, 8), (8, 8)),
        (0.9, 1.5, (8, 8), (8, 6)),
    ],
)
def test_size_of_a_block(scale, aspect, grid, size):
    assert block_size(scale, aspect, grid) == size


def test_images_get_four_blocks_of_their_own():
    mask = drawn(IMAGE)
    assert mask.targets_bml.shape[:2] == (64, 4) and mask.context_bk.shape[1] >= IMAGE.least_context
    assert len({tuple(row.tolist()) for row in mask.targets_bml[:, 0]}) > 10


@pytest.mark.parametrize("kind", ["short", "long", "random tube"])
def test_video_masks_are_tubes(kind):
    """All times hide the same places, whatever of them was dropped to make the batch even."""
    mask = drawn(OTHERS[kind], batch=1, grid=(4, 8, 8))
    hidden = torch.zeros(4 * 64, dtype=torch.bool)
    hidden[mask.targets_bml.flatten()] = True
    assert (hidden.view(4, 64) == hidden.view(4, 64)[0]).all()
    assert mask.targets_bml.shape[1] == 1 and mask.context_bk.shape[1] + mask.targets_bml.shape[2] == 4 * 64


def test_v_jepa_hides_nine_tenths():
    share = [
        1 - drawn(kind, grid=(8, 14, 14), seed=s).context_bk.shape[1] / (8 * 196)
        for s in range(10)
        for kind in (SHORT, LONG)
    ]
    assert 0.75 < np.mean(share) < 0.97


def test_causal_masks_see_the_first_frames_and_predict_all_of_the_others():
    mask = drawn(OTHERS["causal"], batch=1, grid=(5, 8, 8))
    assert mask.context_bk.max() < 2 * 64
    assert set(range(2 * 64, 5 * 64)) <= set(mask.targets_bml.flatten().tolist())


def test_rasterized_predicts_three_quadrants_from_one():
    mask = drawn(OTHERS["rasterized"])
    assert mask.context_bk.shape == (64, 16) and mask.targets_bml.shape == (64, 3, 16)
    quadrant = lambda n: 2 * (n // 8 >= 4).long() + (n % 8 >= 4).long()  # noqa: E731
    assert all(len(quadrant(tokens).unique()) == 1 for sample in mask.targets_bml for tokens in sample)


def test_what_is_dropped_is_drawn():
    """Context cut to the batch's least keeps its places alike: the mean number of those kept lies in the middle."""
    kept = torch.cat([drawn(IMAGE, seed=s).context_bk.float().mean(1) for s in range(20)])
    assert abs(kept.mean() - 31.5) < 0.5


def test_the_same_generator_draws_the_same():
    assert all(torch.equal(a, b) for a, b in zip(drawn(IMAGE, seed=3), drawn(IMAGE, seed=3), strict=True))
    assert not torch.equal(drawn(IMAGE, seed=3).targets_bml[:, :, 0], drawn(IMAGE, seed=4).targets_bml[:, :, 0])


def test_masks_without_context_are_refused():
    with pytest.raises(UserError, match="least_context"):
        drawn(MaskSettings(target_scale=(1.0, 1.0)))
    with pytest.raises(UserError, match="fewer than 10 of 4 tokens"):
        drawn(IMAGE, grid=(1, 2, 2))


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"kind": "stars"}, "not one of blocks, random, quadrants"),
        ({"targets": 0}, "targets of the masks is 0"),
        ({"target_scale": (0.3, 0.2)}, "target_scale of the masks is 0.3 to 0.2"),
        ({"target_scale": (0.3, 1.2)}, "up to 1"),
        ({"target_aspect": (0.0, 1.2)}, "target_aspect"),
        ({"context_frames": 2}, "together: true"),
    ],
)
def test_settings_that_cannot_work_are_refused(given, says):
    with pytest.raises(UserError, match=says):
        MaskSettings(**given)


def test_more_context_frames_than_there_are():
    with pytest.raises(UserError, match="context_frames of the masks is 2, but a clip has 1"):
        drawn(OTHERS["causal"], grid=(1, 8, 8))
