"""The field of the sprites world: where things are, what a move does, and how to walk to the goal.

The picture is cut into regions that never overlap, so that nothing a probe must see is ever covered::

    +--------------------+--------+
    |  sky: the ball     | noise  |   rows 0 .. 8u-1      (u = 1 at 32x32, 2 at 64x64)
    +--------------------+--------+
    |                             |
    |  field: agent, goal, wall   |   rows 8u .. 28u-1
    |                             |
    +-----------------------------+
    |  lane: the distractor       |   rows 28u .. 32u-1
    +-----------------------------+

Positions are centres in pixels of the picture: ``x`` counts columns from the left, ``y`` rows from the top.
"""

from __future__ import annotations

from dataclasses import dataclass

ACTIONS = ("stay", "right", "left", "down", "up")
DIRECTIONS = ((0, 0), (1, 0), (-1, 0), (0, 1), (0, -1))
Point = tuple[int, int]


@dataclass(frozen=True)
class Box:
    """Inclusive ranges of columns and rows."""

    left: int
    right: int
    top: int
    bottom: int

    def shrunk(self, half: int) -> Box:
        """Where the centre of a square of side ``2 * half + 1`` may be so that the square stays inside."""
        return Box(self.left + half, self.right - half, self.top + half, self.bottom - half)


class Field:
    """Geometry at one picture size, and the moves it allows.

    Args:
        size: 32 or 64 pixels a side.
        rooms: put a wall with one door across the middle of the field.
    """

    def __init__(self, size: int, rooms: bool) -> None:
        u = size // 32
        self.size, self.rooms = size, rooms
        self.sky = Box(0, 24 * u - 1, 0, 8 * u - 1)
        self.noise = Box(24 * u, size - 1, 0, 8 * u - 1)
        self.field = Box(0, size - 1, 8 * u, 28 * u - 1)
        self.lane = Box(0, size - 1, 28 * u, size - 1)
        self.half = u  # agent, ball and distractor are squares of side 2 u + 1
        self.ring = u + 1  # the goal is a hollow square one pixel larger all round: the agent fits inside
        self.stride = u + 1  # pixels per move
        # The door admits 2 * slack + 1 heights of the agent. It must be at least ``stride`` heights, or an agent whose
        # height is fixed modulo the stride could not pass; it is 5 pixels at size 32 and 9 at size 64, under twice the sprite.
        self.slack = u
        self.wall_left, self.wall_right = size // 2 - u, size // 2 + u - 1
        self._walk = self.field.shrunk(self.half)

    @property
    def door_width(self) -> int:
        """Height of the opening in pixels."""
        return 2 * (self.slack + self.half) + 1

    def door_range(self) -> tuple[int, int]:
        """Lowest and highest centre row of the door, both inclusive."""
        reach = self.slack + self.half
        return self.field.top + reach, self.field.bottom - reach

    def room(self, side: int, half: int) -> Box:
        """Centres allowed to a square of the given half side in the left (0) or right (1) room, or in the open field."""
        inside = self.field.shrunk(half)
        if not self.rooms:
            return inside
        if side == 0:
            return Box(inside.left, self.wall_left - 1 - half, inside.top, inside.bottom)
        return Box(self.wall_right + 1 + half, inside.right, inside.top, inside.bottom)

    def free(self, x: int, y: int, door: int) -> bool:
        """May the agent's centre be at (x, y)? ``door`` is the door's centre row."""
        walk = self._walk
        if not (walk.left <= x <= walk.right and walk.top <= y <= walk.bottom):
            return False
        if not self.rooms or x + self.half < self.wall_left or x - self.half > self.wall_right:
            return True
        return abs(y - door) <= self.slack

    def move(self, position: Point, action: int, door: int) -> Point:
        """Where an action leads: up to ``stride`` pixels, pixel by pixel until something is in the way."""
        (x, y), (dx, dy) = position, DIRECTIONS[action]
        if action:
            for _ in range(self.stride):
                if not self.free(x + dx, y + dy, door):
                    break
                x, y = x + dx, y + dy
        return x, y

    def reached(self, agent: Point, goal: Point) -> bool:
        """The agent's centre is inside the ring."""
        return max(abs(agent[0] - goal[0]), abs(agent[1] - goal[1])) < self.ring

    def straight_action(self, agent: Point, goal: Point) -> int:
        """Along the straight line to the goal, whatever is in the way: the axis with more left to go."""
        dx, dy = goal[0] - agent[0], goal[1] - agent[1]
        if self.reached(agent, goal):
            return 0
        if abs(dx) >= abs(dy):
            return 1 if dx > 0 else 2
        return 3 if dy > 0 else 4

    def oracle_action(self, agent: Point, goal: Point, door: int) -> int:
        """The way to the goal: to the height of the door, through it, then straight."""
        x, y = agent
        if self.rooms:
            rightward = goal[0] > self.wall_right
            through = x - self.half > self.wall_right if rightward else x + self.half < self.wall_left
            if not through:
                if abs(y - door) > self.slack:
                    return 3 if door > y else 4
                return 1 if rightward else 2
        return self.straight_action(agent, goal)

    def oracle_steps(self, agent: Point, goal: Point, door: int) -> int:
        """Length of the oracle's path in steps."""
        steps = 0
        while not self.reached(agent, goal):
            agent = self.move(agent, self.oracle_action(agent, goal, door), door)
            steps += 1
        return steps
