"""How far a picture lies from the data, by the data's own measure."""

import pytest
import torch

from lit_wm.play.distance import distance, squared_errors

NOISE = torch.randint(256, (40, 3, 8, 8), generator=torch.Generator().manual_seed(0)).byte()
EPISODE = torch.arange(40) // 10


def test_errors_are_those_of_the_definition_and_nothing_is_nearer_to_a_picture_than_itself():
    flat = NOISE.flatten(1)
    errors = squared_errors(flat, flat[:7])
    plain = (flat[:, None] / 255.0 - flat[None, :7] / 255.0).square().mean(-1)
    assert errors.shape == (40, 7) and torch.allclose(errors, plain.double(), atol=1e-6)
    assert (errors.diagonal() == 0).all(), "exactly"
    assert squared_errors(torch.zeros(1, 5).byte(), torch.full((1, 5), 255).byte()).item() == 1


def test_a_frame_of_the_data_lies_in_it_and_its_negative_does_not():
    smooth = (torch.arange(40)[:, None, None, None] * 3 + NOISE // 64).byte()  # frames that have neighbours
    order = torch.randperm(40, generator=torch.Generator().manual_seed(1))
    inside = distance(smooth[13], smooth, EPISODE[order])
    assert (inside.error, inside.nearer, inside.frames, inside.episodes) == (0, 0, 40, 4)
    outside = distance(255 - smooth[13], smooth, EPISODE[order])
    assert outside.nearer == 1 and outside.error > 0.05


def test_neighbours_of_the_same_episode_do_not_count():
    """Frames of an episode are all alike: only what another episode looks like says what is near."""
    levels = torch.tensor([0, 0, 100, 100, 200, 200]).byte()
    frames = levels[:, None, None, None].expand(6, 3, 4, 4)
    found = distance(torch.full((3, 4, 4), 50).byte(), frames, torch.tensor([0, 0, 1, 1, 2, 2]))
    assert found.error == pytest.approx((50 / 255) ** 2) and found.nearer == 0, "others are 100 away from each other"
    assert distance(torch.full((3, 4, 4), 50).byte(), frames, torch.arange(6)).nearer == 1
    assert distance(frames[0], frames, torch.arange(6)).nearer == 0, "as near is not nearer"


def test_one_episode_says_nothing_of_what_is_far():
    found = distance(NOISE[0], NOISE, torch.zeros(40))
    assert found.nearer is None and found.error == 0 and found.episodes == 1
