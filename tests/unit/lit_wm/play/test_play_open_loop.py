"""A model is shown the prompt and nothing else, and what it imagines stands where it belongs."""

import pytest
import torch

from lit_wm.contract import map_state
from lit_wm.errors import UserError
from lit_wm.play.open_loop import generate

PROMPT = {"frames": torch.tensor([40, 80]).byte()[None, :, None, None, None].expand(1, 2, 3, 4, 4)}


class Brightening:
    """A world of one colour that gets brighter by the code, plus noise of as many levels as the temperature says."""

    action_space, codes, draws = "codes", 4, True

    def observe(self, batch):
        return {"level": batch["frames"][:, :, 0, 0, 0].float()}

    def imagine(self, state, actions, samples=1, temperature=1.0, generator=None):
        level = state["level"][:, None, None] + actions[:, None].float().cumsum(2).expand(-1, samples, -1)
        return {"level": level + temperature * torch.randint(0, 9, level.shape, generator=generator)}

    def decode(self, state):
        level = state["level"][..., None, None, None] / 255
        return level.expand(*state["level"].shape, 3, 4, 4) if self.draws else None


def test_prompt_redrawn_frame_and_futures_stand_in_this_order():
    controls = torch.tensor([[0, 0, 0], [1, 2, 3]])
    frames = generate(Brightening(), PROMPT, controls, samples=2, temperature=0, seed=0)
    assert frames.shape == (2, 2, 2 + 1 + 3, 3, 4, 4) and frames.dtype == torch.uint8
    assert (frames == frames[..., :1, :1, :1]).all()
    levels = frames[..., 0, 0, 0]
    assert levels[0].tolist() == [[40, 80, 80, 80, 80, 80]] * 2
    assert levels[1].tolist() == [[40, 80, 80, 81, 83, 86]] * 2


def test_equal_seeds_give_equal_frames_and_samples_differ():
    def drawn(seed):
        return generate(Brightening(), PROMPT, torch.zeros(1, 6, dtype=torch.long), 2, 1.0, seed)

    assert torch.equal(drawn(3), drawn(3)) and not torch.equal(drawn(3), drawn(4))
    first, second = drawn(3)[0]
    assert torch.equal(first[:3], second[:3]) and not torch.equal(first[3:], second[3:])


def test_the_global_random_state_decides_nothing_and_is_left_alone():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first = generate(Brightening(), PROMPT, torch.zeros(1, 6, dtype=torch.long), 1, 1.0, 0)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(1)
    assert torch.equal(first, generate(Brightening(), PROMPT, torch.zeros(1, 6, dtype=torch.long), 1, 1.0, 0))


def test_a_model_that_cannot_draw_is_refused():
    blind = Brightening()
    blind.draws = False
    with pytest.raises(UserError, match="no decoder of its own"):
        generate(blind, PROMPT, torch.zeros(1, 2, dtype=torch.long), 1, 0.0, 0)
    assert map_state(blind.observe(PROMPT), lambda x: x[:, -1:])["level"].shape == (1, 1)
