"""Environments to shards: play, cut into episodes in the data contract's alignment, write."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium.vector import VectorEnv

from datamodules.envs import make, require_next_step
from datamodules.experience import ExperienceError, ExperienceSpec, Policy
from datamodules.index import INDEX_NAME, Index, read_index
from datamodules.policies import make_policy
from datamodules.progress import progress_bar
from datamodules.recording_folder import Recording, require_same

Rows = dict[str, np.ndarray]


def record(
    env_id: str,
    out: str | Path,
    steps: int,
    policy: str = "sticky",
    seed: int = 0,
    num_envs: int = 8,
    *,
    env_args: Mapping[str, Any] | None = None,
    codec: str = "webp",
    holdout: int = 10,
    overwrite: bool = False,
    progress: bool = True,
) -> Recording:
    """Play an environment and write shards. The same arguments give the same bytes.

    Args:
        env_id: see :func:`datamodules.envs.make`.
        out: a folder that does not hold a recording yet.
        steps: rows to record in total, over all environments; see :func:`collect`.
        policy: see :func:`datamodules.policies.make_policy`.
        seed: of the environments and of the policy.
        num_envs: environments side by side; part of what determines the recording.
        env_args: options of the environment, plain JSON types.
        codec, holdout, overwrite: see :class:`datamodules.shards.ShardWriter`.
        progress: show a bar, if the error stream is a terminal.

    Returns:
        Counts of what is now on the disk.

    Raises:
        ExperienceError: an argument that cannot work, an occupied folder, an environment that breaks the data contract.
        KeyboardInterrupt: on Ctrl-C, after what was finished has been written.
    """
    env_args = dict(env_args or {})
    if steps < 2:
        raise ExperienceError(f"steps {steps} must be at least 2: one step has no action and no outcome")
    env = make(env_id, played_side_by_side(num_envs, steps), seed, **env_args)
    spec = env.experience
    player = make_policy(policy, env_id, spec, seed)
    from datamodules.shards import ShardWriter  # here, because webdataset loads torch, which takes seconds

    began = time.perf_counter()
    writer = ShardWriter(
        out,
        spec,
        environment={"id": env_id, **env_args},
        policy=policy,
        seed=seed,
        num_envs=env.num_envs,
        codec=codec,
        holdout=holdout,
        overwrite=overwrite,
    )
    try:
        with writer, progress_bar("recording", "steps", steps, progress) as bar:
            for rows in collect(env, spec, player, steps, bar.advance):
                writer.write_episode(rows)
    finally:
        env.close()
    return Recording.of(out, writer.close(), time.perf_counter() - began)


def played_side_by_side(num_envs: int, steps: int) -> int:
    """Of ``num_envs`` environments, as many as find two steps to play."""
    return min(num_envs, steps // 2)


def find_recording(
    env_id: str,
    out: str | Path,
    steps: int,
    policy: str,
    seed: int,
    num_envs: int,
    *,
    env_args: Mapping[str, Any],
    codec: str,
    holdout: int,
) -> Index | None:
    """The index in ``out`` if it is of the recording that these arguments of :func:`record` make, ``complete`` or not.

    Raises:
        ExperienceError: another recording, or a broken one, lies there.
    """
    if not (Path(out) / INDEX_NAME).exists():
        return None
    index = read_index(out)
    total = sum(shard.steps for shard in index.shards)
    fits = total in (steps - 1, steps) if index.complete else total <= steps  # see collect: one row may be left over
    wanted = (
        ("environment", index.environment, {"id": env_id, **env_args}),
        ("policy", index.policy, policy),
        ("seed", index.seed, seed),
        ("steps", steps if fits else total, steps),
        ("num_envs", index.num_envs, played_side_by_side(num_envs, steps)),
        ("codec", index.codec, codec),
        ("holdout", index.holdout, holdout),
    )
    require_same(out, wanted)
    return index


def collect(env: VectorEnv, spec: ExperienceSpec, policy: Policy, steps: int, advance: Any = None) -> Iterator[Rows]:
    """Episodes of the data contract, in the order in which they end.

    In NEXT_STEP mode the environments already deliver the contract's alignment: reward and flags come with the frame
    they belong to, the final frame in line, and then, whatever the action, the first frame of the next episode.

    The total is ``steps`` rows, every row of every environment counting one. An episode is begun only if two rows of the
    budget are left, since a single row tells nothing; when the budget is spent, what is still going on is closed like a
    time limit (``is_last`` without ``is_terminal``). One row is left over if no open episode can take it.

    Args:
        env: observations are dicts, as :func:`datamodules.envs.make` makes them.
        spec: what they look like.
        policy: who acts.
        steps: rows in total.
        advance: called with the number of rows after each step of the environments.

    Raises:
        ExperienceError: another autoreset mode, or observations or actions that are not what ``spec`` says.
    """
    require_next_step(env)
    keys = [*spec.observations, *(["state"] if spec.factors else [])]
    open_rows: list[list[dict[str, Any]]] = [[] for _ in range(env.num_envs)]
    retired = np.zeros(env.num_envs, bool)  # no budget was left for their next episode
    spent = 0  # rows taken, and for an episode of one row so far the second one too, which is promised to it
    observation, _ = env.reset()
    reward, over = np.zeros(env.num_envs), np.zeros(env.num_envs, bool)
    is_first, terminated = ~over, over
    memory = policy.initial_state(env.num_envs)
    while not retired.all() and (spent < steps or any(len(rows) == 1 for rows in open_rows)):
        if missing := [key for key in keys if key not in observation]:
            raise ExperienceError(f"the environment delivers no '{missing[0]}' but {', '.join(observation)}")
        action, memory, _ = policy.act(observation, is_first, memory)
        taken = 0
        for i, rows in enumerate(open_rows):
            cost = {0: 2, 1: 0}.get(len(rows), 1)
            if spent + cost > steps or retired[i]:
                retired[i] |= not rows
                continue
            spent, taken = spent + cost, taken + 1
            rows.append(
                {key: np.array(observation[key][i]) for key in keys}
                | {"action": action[i], "reward": reward[i], "is_first": is_first[i]}
                | {"is_last": over[i], "is_terminal": terminated[i]}
            )
            if over[i]:
                yield _episode(rows, spec)
                rows.clear()
        if advance is not None:
            advance(taken)
        observation, reward, terminated, truncated, _ = env.step(action)
        is_first, over = over, terminated | truncated
    for rows in open_rows:
        if rows:
            rows[-1]["is_last"] = True
            yield _episode(rows, spec)


def _episode(rows: list[dict[str, Any]], spec: ExperienceSpec) -> Rows:
    """Stack rows in time, in the contract's dtypes; the void action of the last row becomes 0."""
    dtypes = {"action": spec.action.dtype, "reward": np.float32, "is_first": bool, "is_last": bool, "is_terminal": bool}
    episode = {key: np.stack([row[key] for row in rows]) for key in rows[0]}
    episode |= {key: episode[key].astype(dtype) for key, dtype in dtypes.items()}
    episode["action"][-1] = 0
    return episode
