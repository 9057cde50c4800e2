"""A toy world whose truth is known, and world models of known quality that live in it.

A red dot obeys five actions and stops at walls, a green dot flies straight and bounces, a blue dot jumps at random.
"""

from __future__ import annotations

import torch
from torch import Tensor

from datamodules.experience import ActionSpace, ExperienceSpec, Factor
from lit_wm.contract import map_state, repeat_samples
from lit_wm.evaluation.settings import Settings

SIZE = 16
MOVES = torch.tensor([[0, 0], [-1, 0], [1, 0], [0, -1], [0, 1]])
NAMES = ("agent_x", "agent_y", "ball_x", "ball_y", "ball_vx", "ball_vy", "noise_x", "noise_y", "lamp", "seldom")
SPEC = ExperienceSpec(
    {"frames": (SIZE, SIZE, 3)},
    ActionSpace("discrete", (5,), ("stay", "left", "right", "up", "down")),
    tuple(
        Factor(
            name,
            {"ball_v": "velocity", "noise_": "distractor"}.get(name[:-1], "task"),
            "discrete" if name == "lamp" else "continuous",
        )
        for name in NAMES
    ),
)
QUICK = Settings(draws=100, decoder_steps=30, repeats=1, shown=2, batch_size=64)


def move(agent: Tensor, action: Tensor) -> Tensor:
    return (agent + MOVES[action]).clamp(0, SIZE - 1)


def fly(ball: Tensor, velocity: Tensor) -> tuple[Tensor, Tensor]:
    ball = ball + velocity
    out = (ball < 0) | (ball > SIZE - 1)
    return torch.where(out, ball - 2 * velocity, ball), torch.where(out, -velocity, velocity)


def render(places: Tensor) -> Tensor:
    """(..., 3, 2) integer x, y of the red, green and blue dot -> (..., 3, SIZE, SIZE) in {0, 1}."""
    x, y = places.long().unbind(-1)
    flat = torch.nn.functional.one_hot(y * SIZE + x, SIZE * SIZE)
    return flat.unflatten(-1, (SIZE, SIZE)).float()


def make_clips(episodes: range, clips_per_episode: int = 4, length: int = 12, seed: int = 0) -> dict[str, Tensor]:
    """One clip after another of each episode, as ``fixed_clips`` gives them."""
    generator = torch.Generator().manual_seed(1000 * seed + episodes.start)
    steps, count = clips_per_episode * length, len(episodes)

    def draw(*shape: int, high: int = SIZE) -> Tensor:
        return torch.randint(high, shape, generator=generator)

    action = draw(count, steps, high=5)
    agent, ball, velocity = draw(count, 2), draw(count, 2), 2 * draw(count, 2, high=2) - 1
    places, speeds = [], []
    for t in range(steps):
        places.append(torch.stack([agent, ball, draw(count, 2)], 1))
        speeds.append(velocity)
        agent = move(agent, action[:, t])
        ball, velocity = fly(ball, velocity)
    place, speed = torch.stack(places, 1), torch.stack(speeds, 1)
    is_first, is_last = torch.zeros(count, steps, dtype=torch.bool), torch.zeros(count, steps, dtype=torch.bool)
    is_first[:, 0], is_last[:, -1] = True, True
    action[:, -1] = 0
    lamp = (place[:, :, 0, 0] >= SIZE // 2).float()
    seldom = torch.where(place[:, :, 1, 0] < SIZE // 2, place[:, :, 1, 1].float(), torch.nan)
    columns = [place[:, :, 0], place[:, :, 1], speed, place[:, :, 2], lamp[..., None], seldom[..., None]]
    rows = {
        "frames": (255 * render(place)).byte(),
        "action": action,
        "reward": torch.zeros(count, steps),
        "is_first": is_first,
        "is_last": is_last,
        "is_terminal": torch.zeros_like(is_last),
        "state": torch.cat([column.float() for column in columns], -1),
    }
    clips = {key: value.unflatten(1, (clips_per_episode, length)).flatten(0, 1) for key, value in rows.items()}
    clips["episode"] = torch.tensor(list(episodes)).repeat_interleave(clips_per_episode)
    clips["start"] = torch.arange(0, steps, length).repeat(count)
    return clips


def splits(train: int = 48, val: int = 12, test: int = 24, **options: int) -> dict[str, dict[str, Tensor]]:
    ends = (train, train + val, train + val + test)
    ranges = (range(0, ends[0]), range(ends[0], ends[1]), range(ends[1], ends[2]))
    return {name: make_clips(r, **options) for name, r in zip(("train", "val", "test"), ranges, strict=True)}


class Oracle:
    """Reads the true state off the frames and imagines by the true law. ``noise`` blurs features, ``blur`` pictures."""

    labels = ("frames", "actions")
    action_space = "environment"
    codes = None

    def __init__(self, noise: float = 0.0, blur: int = 0) -> None:
        self.noise, self.blur = noise, blur

    def observe(self, batch):
        assert "state" not in batch, "a model must never be shown the truth"
        place = batch["frames"].flatten(-2).float().argmax(-1)
        xy = torch.stack([place % SIZE, place // SIZE], -1)
        speed = torch.ones_like(xy[:, :, 1])
        speed[:, 1:] = xy[:, 1:, 1] - xy[:, :-1, 1]
        return {"xy": xy, "speed": speed}

    def displacement(self, actions: Tensor) -> Tensor:
        return actions.argmax(-1)

    def imagine(self, state, actions, samples=1, temperature=1.0, generator=None):
        xy, speed = state["xy"], state["speed"]
        out = []
        for action in self.displacement(actions).unbind(1):
            ball, speed = fly(xy[:, 1], speed)
            xy = torch.stack([move(xy[:, 0], action), ball, xy[:, 2]], 1)
            out.append({"xy": xy, "speed": speed})
        future = {key: torch.stack([o[key] for o in out], 1) for key in state}
        return map_state(repeat_samples(future, samples), lambda x: x.unflatten(0, (-1, samples)))

    def features(self, state):
        xy, speed = state["xy"].float(), state["speed"].float()
        lamp = (xy[..., 0, 0] >= SIZE // 2).float()
        left = (xy[..., 1, 0] < SIZE // 2).float()  # the blue dot cannot be predicted, so it is left out
        columns = [xy[..., :2, :].flatten(-2), speed, torch.stack([lamp, left, left * xy[..., 1, 1]], -1)]
        exact = torch.cat(columns, -1)
        generator = torch.Generator().manual_seed(7)
        return exact + self.noise * torch.randn(exact.shape, generator=generator)

    def feature_map(self, state):
        return None

    def targets(self, batch):
        return self.features(self.observe(batch))

    def decode(self, state):
        frames = render(state["xy"])
        if self.blur:
            width = 2 * self.blur + 1
            flat = torch.nn.functional.avg_pool2d(frames.flatten(0, -4), width, 1, self.blur)
            frames = flat.unflatten(0, frames.shape[:-3])
        return frames

    def infer_actions(self, batch):
        return None

    def log_prob(self, state, batch):
        return None


class CopyLast(Oracle):
    """Believes that nothing ever changes."""

    labels = ("frames",)
    action_space = "none"

    def imagine(self, state, actions, samples=1, temperature=1.0, generator=None):
        return map_state(state, lambda x: x[:, None, None].expand(-1, samples, actions.shape[1], *x.shape[1:]))


class MeanPredictor(CopyLast):
    """Sees well, but imagines the average of everything."""

    def features(self, state):
        exact = super().features(state)
        return torch.where(state["dull"][..., None] > 0, torch.full_like(exact, 5.0), exact)

    def observe(self, batch):
        state = super().observe(batch)
        return state | {"dull": torch.zeros(state["xy"].shape[:2])}

    def imagine(self, state, actions, samples=1, temperature=1.0, generator=None):
        return super().imagine(state | {"dull": torch.ones_like(state["dull"])}, actions, samples)

    def decode(self, state):
        return None


class Collapsed(CopyLast):
    """Features that are constant up to tiny noise."""

    def features(self, state):
        shape = (*state["xy"].shape[:-2], 16)
        return 1 + 1e-4 * torch.randn(shape, generator=torch.Generator().manual_seed(state["xy"].numel()))

    def decode(self, state):
        return None


class Aimless(CopyLast):
    """Random weights: a frozen random nonlinear code of the frame, never rolled."""

    def observe(self, batch):
        return {"xy": super().observe(batch)["xy"], "frames": batch["frames"]}

    def features(self, state):
        pixels = state["frames"].flatten(-3).float() / 255
        weight = torch.randn(pixels.shape[-1], 16, generator=torch.Generator().manual_seed(3))
        return torch.tanh(pixels @ weight)

    def decode(self, state):
        return None


class Coded(Oracle):
    """Acts by its own codes: a fixed permutation of the executed moves."""

    labels = ("frames",)
    action_space = "codes"
    codes = len(MOVES)
    PERMUTATION = torch.tensor([3, 0, 4, 1, 2])  # action -> code

    def infer_actions(self, batch):
        xy = self.observe(batch)["xy"][:, :, 0]
        moved = (xy[:, 1:] - xy[:, :-1])[..., None, :] == MOVES
        return self.PERMUTATION[moved.all(-1).float().argmax(-1)]

    def displacement(self, actions):
        return self.PERMUTATION.argsort()[actions]
