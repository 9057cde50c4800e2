"""The sprites world: small, fast, and every cause in it has a knob.

An agent that obeys (five actions), a goal that pays, a ball that flies by itself and may fork at random, a patch of
noise, and a distractor whose motion can be anything from random to clockwork. The truth about all of it is in
``state``. Each cause draws from its own random stream: turning a knob changes nothing but what it names.

``state`` holds, in pixels and pixels per step (see :mod:`datamodules.envs.sprites_field` for the axes):

=========================  ==========  =============================================================================
factor                     group       meaning
=========================  ==========  =============================================================================
agent_x, agent_y           task        centre of the blue square
goal_x, goal_y             task        centre of the green ring
move_dx, move_dy           velocity    displacement that the last action really caused (0 against a wall); NaN at first
ball_x, ball_y             task        centre of the yellow square
ball_vx, ball_vy           velocity    displacement of the ball in the last step; NaN on the first frame
fork                       event       1 turned back, 0 let through, from the step that decides until the ball next
                                       meets a side of the sky; NaN while undecided (only with a fork)
door_y                     task        centre row of the door (only with rooms)
distractor_x, _y           distractor  centre of the magenta square (only with a distractor)
=========================  ==========  =============================================================================
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from typing import Any

import gymnasium
import numpy as np

from datamodules.envs.sprites_field import ACTIONS, Box, Field, Point
from datamodules.experience import ActionSpace, ExperienceError, ExperienceSpec, Factor

SKY, FIELD, LANE = (24, 24, 44), (12, 12, 16), (40, 24, 36)
AGENT, GOAL, BALL, WALL, DISTRACTOR = (80, 140, 255), (60, 210, 60), (240, 190, 40), (150, 150, 150), (230, 60, 200)
WEAKEST = 0.1  # a distractor fainter than a tenth of its contrast could not be seen by anyone
LENGTH = 100


@dataclass
class World:
    """Everything that changes: copy it and the future can be played twice."""

    agent: Point
    goal: Point
    door: int
    budget: int
    ball: Point
    ball_heading: Point
    distractor: Point
    distractor_heading: Point
    noise: np.ndarray
    steps: int = 0
    reached: bool = False
    over: bool = False
    fork: float = float("nan")
    move: tuple[float, float] = (float("nan"), float("nan"))
    ball_move: tuple[float, float] = (float("nan"), float("nan"))


class SpritesEnv(gymnasium.Env):
    """One sprites world. Observations: ``frames`` (size,size,3) uint8 and ``state`` (F,) float32.

    Reward 1 with the frame in which the agent's centre is inside the goal's ring. Without rooms the goal then moves
    with the next step and the episode ends (truncated, not terminal) after ``length`` steps. With rooms, agent and
    goal start on different sides of a wall with one door; reaching the goal is terminal, and the episode is cut
    after twice the steps that the scripted oracle needs.

    Args:
        size: 64 or 32 pixels a side.
        rooms: the wall with a door.
        length: steps of an episode in the open field (default 100, the first frame not counted); rooms set their own.
        fork_probability: probability that the ball is turned back each time it comes to the middle of the sky;
            None or 0: it always passes, and its flight is deterministic.
        noise: strength of the noise patch in [0, 1]: the amplitude of its independent uniform pixels.
        distractor: strength of the distractor, 0 (absent) or [0.1, 1]: its contrast.
        distractor_predictability: probability that a step of the distractor follows its straight bouncing course;
            otherwise it jumps anywhere in its lane. 1 is deterministic, 0 is white noise.

    Raises:
        ExperienceError: a value out of its range.
    """

    def __init__(
        self,
        size: int = 64,
        rooms: bool = False,
        length: int | None = None,
        fork_probability: float | None = None,
        noise: float = 0.0,
        distractor: float = 0.0,
        distractor_predictability: float = 1.0,
    ) -> None:
        self.fork_probability = fork_probability or 0.0
        self.noise, self.distractor, self.predictability = noise, distractor, distractor_predictability
        if size not in (32, 64):
            raise ExperienceError(f"sprites: size {size} is not 32 or 64")
        knobs = {"fork_probability": self.fork_probability, "noise": noise, "distractor": distractor}
        for name, value in (knobs | {"distractor_predictability": distractor_predictability}).items():
            if not 0 <= value <= 1:
                raise ExperienceError(f"sprites: {name} {value} is not in [0, 1]")
        if 0 < distractor < WEAKEST:
            raise ExperienceError(f"sprites: distractor {distractor} cannot be seen; give 0 or at least {WEAKEST}")
        if rooms and length is not None:
            raise ExperienceError("sprites: length cannot be set with rooms, whose budget is twice the oracle's path")
        self.length = LENGTH if length is None else length
        if self.length < 1:
            raise ExperienceError(f"sprites: length {length} must be at least 1")

        self.field = Field(size, bool(rooms))
        self.experience = ExperienceSpec(
            {"frames": (size, size, 3)}, ActionSpace("discrete", (len(ACTIONS),), ACTIONS), self._factors()
        )
        self.observation_space = gymnasium.spaces.Dict(
            {
                "frames": gymnasium.spaces.Box(0, 255, (size, size, 3), np.uint8),
                "state": gymnasium.spaces.Box(-np.inf, np.inf, (len(self.experience.factors),), np.float32),
            }
        )
        self.action_space = gymnasium.spaces.Discrete(len(ACTIONS))
        self._canvas = self._empty_picture()
        mix = distractor * np.subtract(DISTRACTOR, LANE) + LANE
        self.distractor_colour = np.round(mix).astype(np.uint8)
        self._world: World | None = None
        self._seed(None)

    def _factors(self) -> tuple[Factor, ...]:
        factors = [Factor(name) for name in ("agent_x", "agent_y", "goal_x", "goal_y")]
        factors += [Factor("move_dx", "velocity"), Factor("move_dy", "velocity"), Factor("ball_x"), Factor("ball_y")]
        factors += [Factor("ball_vx", "velocity"), Factor("ball_vy", "velocity")]
        if self.fork_probability:
            factors.append(Factor("fork", "event", "discrete"))
        if self.field.rooms:
            factors.append(Factor("door_y"))
        if self.distractor:
            factors += [Factor("distractor_x", "distractor"), Factor("distractor_y", "distractor")]
        return tuple(factors)

    # ---- the Gymnasium interface ---------------------------------------------------------------------------------

    def _seed(self, seed: int | None) -> None:
        streams = np.random.SeedSequence(seed).spawn(4)
        names = ("layout", "ball", "distractor", "noise")
        self._random = {name: np.random.default_rng(s) for name, s in zip(names, streams, strict=True)}

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[dict, dict]:
        """A new episode; ``seed`` restarts every random stream."""
        if seed is not None:
            self._seed(seed)
        field, layout, ball = self.field, self._random["layout"], self._random["ball"]
        side = int(layout.integers(2))
        agent = _draw(layout, field.room(side, field.half))
        goal = self._new_goal(agent, 1 - side)
        low, high = field.door_range()
        door = int(layout.integers(low, high + 1))
        budget = 2 * field.oracle_steps(agent, goal, door) if field.rooms else self.length
        self._world = World(
            agent=agent,
            goal=goal,
            door=door,
            budget=budget,
            ball=_draw(ball, field.sky.shrunk(field.half)),
            ball_heading=(int(ball.choice((-1, 1))) * field.half, int(ball.choice((-1, 1)))),
            **self._new_distractor(),
            noise=self._new_noise(),
        )
        return self._observation(), {}

    def step(self, action: int) -> tuple[dict, float, bool, bool, dict]:
        """One step: the agent moves, the ball flies, the distractor and the noise go on.

        Raises:
            ExperienceError: before ``reset``, after the end of an episode, or for an action out of 0 .. 4.
        """
        world, field = self._world, self.field
        if world is None or world.over:
            raise ExperienceError("sprites: the episode is over (or never began); call reset")
        if not 0 <= action < len(ACTIONS):
            raise ExperienceError(f"sprites: action {action} is not in 0 .. {len(ACTIONS) - 1}")
        if world.reached:  # the last frame showed the agent in the ring; only now does the goal go elsewhere
            world.goal = self._new_goal(world.agent, 0)
        x, y = world.agent
        world.agent = field.move(world.agent, int(action), world.door)
        world.move = (world.agent[0] - x, world.agent[1] - y)
        world.reached = field.reached(world.agent, world.goal)
        self._fly(world)
        if self.distractor:
            self._wander(world)
        world.noise = self._new_noise()
        world.steps += 1
        terminated = field.rooms and world.reached
        truncated = not terminated and world.steps >= world.budget
        world.over = terminated or truncated
        return self._observation(), float(world.reached), terminated, truncated, {}

    def get_state(self) -> tuple[World, dict[str, np.random.Generator]]:
        """A copy of the world and of its random streams: enough to play the same future again.

        Raises:
            ExperienceError: before ``reset``.
        """
        if self._world is None:
            raise ExperienceError("sprites: there is no state before reset")
        return copy.deepcopy((self._world, self._random))

    def set_state(self, state: tuple[World, dict[str, np.random.Generator]], seed: int | None = None) -> dict:
        """Go back to a copied state, of this environment or of one with the same options; returns its observation.

        Args:
            state: from :meth:`get_state`; it is copied again.
            seed: give a number to draw another future from the same present.
        """
        self._world, self._random = copy.deepcopy(state)
        if seed is not None:
            self._seed(seed)
        return self._observation()

    def goal_observation(self) -> dict[str, np.ndarray]:
        """What would be seen now if the agent stood in the goal: a goal given as a picture. Nothing changes.

        Raises:
            ExperienceError: before ``reset``.
        """
        if self._world is None:
            raise ExperienceError("sprites: there is no goal before reset")
        here = self._world
        self._world = replace(here, agent=here.goal, move=(0.0, 0.0))
        try:
            return self._observation()
        finally:
            self._world = here

    # ---- causes --------------------------------------------------------------------------------------------------

    def _new_goal(self, agent: Point, side: int) -> Point:
        """A place for the goal that the agent neither touches nor reaches with one move."""
        field = self.field
        while True:
            goal = _draw(self._random["layout"], field.room(side, field.ring))
            if max(abs(goal[0] - agent[0]), abs(goal[1] - agent[1])) > 2 * (field.ring + field.stride):
                return goal

    def _new_distractor(self) -> dict[str, Point]:
        random, field = self._random["distractor"], self.field
        heading = (int(random.choice((-1, 1))) * field.stride, int(random.choice((-1, 1))))
        return {"distractor": _draw(random, field.lane.shrunk(field.half)), "distractor_heading": heading}

    def _new_noise(self) -> np.ndarray:
        """The noise patch: mid grey, each channel of each pixel moved by up to ``noise`` x 127."""
        box = self.field.noise
        shape = (box.bottom - box.top + 1, box.right - box.left + 1, 3)
        if not self.noise:
            return np.empty((0, *shape[1:]), np.uint8)
        drawn = self._random["noise"].integers(0, 256, shape, dtype=np.uint8)
        return (127.5 + self.noise * (drawn - 127.5)).astype(np.uint8)

    def _fly(self, world: World) -> None:
        """The ball: straight, reflected by the edges of the sky; in the middle it may be turned back (the fork)."""
        box, (x, y), (vx, vy) = self.field.sky.shrunk(self.field.half), world.ball, world.ball_heading
        middle = (box.left + box.right) / 2
        undecided = np.isnan(world.fork)
        if undecided and (x - middle) * (x + vx - middle) < 0:
            if self.fork_probability:
                world.fork = float(self._random["ball"].random() < self.fork_probability)
            if world.fork == 1:
                vx = -vx
        new_x, new_vx = _bounce(x + vx, vx, box.left, box.right)
        new_y, new_vy = _bounce(y + vy, vy, box.top, box.bottom)
        if new_vx != vx:  # a side of the sky: what the fork decided is over
            world.fork = float("nan")
        world.ball, world.ball_heading, world.ball_move = (new_x, new_y), (new_vx, new_vy), (new_x - x, new_y - y)

    def _wander(self, world: World) -> None:
        """The distractor: on its course with probability ``distractor_predictability``, else anywhere."""
        if self._random["distractor"].random() >= self.predictability:
            new = self._new_distractor()
            world.distractor, world.distractor_heading = new["distractor"], new["distractor_heading"]
            return
        box, (x, y), (vx, vy) = self.field.lane.shrunk(self.field.half), world.distractor, world.distractor_heading
        x, vx = _bounce(x + vx, vx, box.left, box.right)
        y, vy = _bounce(y + vy, vy, box.top, box.bottom)
        world.distractor, world.distractor_heading = (x, y), (vx, vy)

    # ---- the picture and the truth -------------------------------------------------------------------------------

    def _empty_picture(self) -> np.ndarray:
        field = self.field
        picture = np.empty((field.size, field.size, 3), np.uint8)
        for box, colour in ((field.sky, SKY), (field.noise, SKY), (field.field, FIELD), (field.lane, LANE)):
            picture[box.top : box.bottom + 1, box.left : box.right + 1] = colour
        if field.rooms:
            picture[field.field.top : field.field.bottom + 1, field.wall_left : field.wall_right + 1] = WALL
        return picture

    def _observation(self) -> dict[str, np.ndarray]:
        world, field = self._world, self.field
        picture = self._canvas.copy()
        if field.rooms:
            reach = field.slack + field.half
            picture[world.door - reach : world.door + reach + 1, field.wall_left : field.wall_right + 1] = FIELD
        _square(picture, world.goal, field.ring, GOAL)
        _square(picture, world.goal, field.ring - 1, FIELD)
        _square(picture, world.agent, field.half, AGENT)  # over the ring, of which at least half stays visible
        _square(picture, world.ball, field.half, BALL)
        if self.noise:
            picture[field.noise.top : field.noise.bottom + 1, field.noise.left : field.noise.right + 1] = world.noise
        if self.distractor:
            _square(picture, world.distractor, field.half, self.distractor_colour)
        state = [*world.agent, *world.goal, *world.move, *world.ball, *world.ball_move]
        if self.fork_probability:
            state.append(world.fork)
        if field.rooms:
            state.append(world.door)
        if self.distractor:
            state.extend(world.distractor)
        return {"frames": picture, "state": np.array(state, np.float32)}


def _draw(random: np.random.Generator, box: Box) -> Point:
    return int(random.integers(box.left, box.right + 1)), int(random.integers(box.top, box.bottom + 1))


def _bounce(x: int, v: int, low: int, high: int) -> tuple[int, int]:
    """Reflect a position that went past an edge, and turn its velocity."""
    if x < low:
        return 2 * low - x, -v
    if x > high:
        return 2 * high - x, -v
    return x, v


def _square(picture: np.ndarray, centre: Point, half: int, colour: Any) -> None:
    x, y = centre
    picture[y - half : y + half + 1, x - half : x + half + 1] = colour
