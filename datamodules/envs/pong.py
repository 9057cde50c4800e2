"""Atari Pong with the truth from the console's memory. Needs ale-py (the ``[atari]`` extra).

The picture is the playing field (rows 34 to 193 of the console's 210 x 160, which is square) averaged over areas to
64x64; the score above and the bare border below are left out, so that the ball keeps as many pixels as it can. Taking
the nearest pixel instead would lose the ball in a fifth of the frames.

``state``, in pixels of the stored picture (centres; x from the left, y from the top) and pixels per step:

====================  =========  ====================================================================================
factor                group      meaning
====================  =========  ====================================================================================
ball_x, ball_y        task       NaN while the ball is not to be seen
player_y, enemy_y     task       centres of the right and the left paddle; NaN while a paddle is not drawn
ball_vx, ball_vy      velocity   displacement in the last step; NaN unless the ball was seen in both frames
ball_in_play          task       1 between serve and point, else 0; discrete
====================  =========  ====================================================================================
"""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from PIL import Image

from datamodules.experience import ActionSpace, ExperienceError, ExperienceSpec, Factor

try:
    import ale_py
    from ale_py.env import AtariEnv
except ImportError as error:
    raise ExperienceError("pong needs ale-py (GPL-2.0): pip install 'lit-wm[atari]'") from error

TOP, SIDE = 34, 160  # first row of the playing field, and its side
ACTIONS = ("noop", "fire", "right", "left", "rightfire", "leftfire")  # right moves the paddle up, left moves it down
FACTORS = (
    *(Factor(name) for name in ("ball_x", "ball_y", "player_y", "enemy_y")),
    Factor("ball_vx", "velocity"),
    Factor("ball_vy", "velocity"),
    Factor("ball_in_play", "task", "discrete"),
)
BALL_X, ENEMY_Y, PLAYER_Y, BALL_Y = 49, 50, 51, 54  # addresses in the console's 128 bytes


def decode_ram(ram: np.ndarray) -> dict[str, float]:
    """Positions in pixels of the playing field (0 .. 159, centres) from the console's memory.

    Measured against the pixels: exact to 1 pixel in the frame shown with that memory. A position is NaN while no pixel
    of the thing lies in the field. The very first frame of a game shows an empty field; there the memory still holds
    a ball row without a ball column.
    """
    ball_x, enemy_y, player_y, ball_y = (int(ram[address]) for address in (BALL_X, ENEMY_Y, PLAYER_Y, BALL_Y))
    in_play = ball_x != 0 and ball_y != 0
    empty = ball_x == 0 and ball_y != 0
    nan = float("nan")
    ball_seen = in_play and 45 <= ball_y <= 207  # 4 rows high, centred on ball_y - 46.5
    return {
        "ball_x": ball_x - 48.5 if ball_seen else nan,
        "ball_y": ball_y - 46.5 if ball_seen else nan,
        "player_y": player_y - 40.0 if 33 <= player_y <= 206 and not empty else nan,  # 16 rows high
        "enemy_y": enemy_y - 41.5 if 34 <= enemy_y <= 208 and not empty else nan,
        "ball_in_play": float(in_play),
    }


def area_average(field: np.ndarray, size: int) -> np.ndarray:
    """The playing field (160,160,3) averaged over the area of each pixel of a (size,size,3) picture, in whole numbers.

    At 64 a pixel covers 2.5 x 2.5 of the console's. Pillow's own ``BOX`` filter counts a half covered pixel whole or
    not at all (wrong by up to 66 of 255), so every pixel is doubled first, and then blocks are averaged.
    """
    doubled = Image.fromarray(field).resize((2 * SIDE, 2 * SIDE), Image.Resampling.NEAREST)
    return np.asarray(doubled.reduce(2 * SIDE // size))


class PongEnv(gymnasium.Env):
    """Pong as ``ALE/Pong-v5`` plays it. Observations: ``frames`` (size,size,3) uint8 and ``state`` (7,) float32.

    Args:
        size: side of the picture: 16, 20, 32, 40, 64, 80 or 160, so that areas are averaged in whole half pixels.
        frameskip: console frames per step.
        repeat_action_probability: chance that the console repeats the last action instead of obeying (sticky actions).

    Raises:
        ExperienceError: a value out of its range.
    """

    def __init__(self, size: int = 64, frameskip: int = 4, repeat_action_probability: float = 0.25) -> None:
        if not 16 <= size <= SIDE or 2 * SIDE % size:
            raise ExperienceError(f"pong: size {size} is not one of 16, 20, 32, 40, 64, 80, 160")
        if frameskip < 1 or not 0 <= repeat_action_probability <= 1:
            raise ExperienceError("pong: frameskip must be at least 1 and repeat_action_probability in [0, 1]")
        ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)
        self.atari = AtariEnv(
            "pong",
            obs_type="rgb",
            frameskip=frameskip,
            repeat_action_probability=repeat_action_probability,
            full_action_space=False,
            max_num_frames_per_episode=108_000,
        )
        self.size = size
        self.experience = ExperienceSpec(
            {"frames": (size, size, 3)}, ActionSpace("discrete", (len(ACTIONS),), ACTIONS), FACTORS
        )
        self.action_space = gymnasium.spaces.Discrete(len(ACTIONS))
        self.observation_space = gymnasium.spaces.Dict(
            {
                "frames": gymnasium.spaces.Box(0, 255, (size, size, 3), np.uint8),
                "state": gymnasium.spaces.Box(-np.inf, np.inf, (len(FACTORS),), np.float32),
            }
        )
        self._ball = (float("nan"), float("nan"))

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[dict, dict]:
        # Without a seed the console's random stream goes on, so that one seed fixes all the games that follow.
        picture, _ = self.atari.reset(seed=seed, options=options)
        return self._observation(picture), {}

    def step(self, action: int) -> tuple[dict, float, bool, bool, dict]:
        picture, reward, terminated, truncated, _ = self.atari.step(int(action))
        return self._observation(picture), float(reward), terminated, truncated, {}

    def close(self) -> None:
        self.atari.close()

    def _observation(self, picture: np.ndarray) -> dict[str, np.ndarray]:
        truth = decode_ram(self.atari.ale.getRAM())
        scale = self.size / SIDE
        x, y, player, enemy = (
            (truth[name] + 0.5) * scale - 0.5 for name in ("ball_x", "ball_y", "player_y", "enemy_y")
        )
        velocity = (
            x - self._ball[0],
            y - self._ball[1],
        )  # NaN across a serve or a reset: frames without a ball lie between
        self._ball = (x, y)
        state = np.array([x, y, player, enemy, *velocity, truth["ball_in_play"]], np.float32)
        return {"frames": area_average(picture[TOP : TOP + SIDE], self.size), "state": state}
