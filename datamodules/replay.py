"""ReplayDataModule: an agent acts, what it meets is stored, and it learns from that: online training for Lightning."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from lightning import LightningDataModule
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_warn

from datamodules.envs import describe, vector_env
from datamodules.experience import ExperienceError
from datamodules.online import OnlineLoader, OnlineSettings, over_ranks
from datamodules.play import PlayLoader
from datamodules.recording_folder import forget, next_to
from datamodules.recording_state import holds_more, lost
from datamodules.replay_memory import KEPT, Replay
from datamodules.run_folder import BEST, RunFolder
from datamodules.shards import ShardWriter

REPLAY, EPISODES = "replay", "episodes"  # folders of a run
TRAIN, TEST, VAL = 0, 1, 2  # streams of random numbers that have nothing in common


class ReplayDataModule(LightningDataModule):
    """Batches from a replay that the model under training fills by acting in environments.

    Before each batch the environments are stepped as ``train_ratio`` asks for, by ``trainer.lightning_module.policy(seed)``.
    Every finished episode is also written to ``RUN/episodes`` in the shard format, so that what was collected can train
    any route. A checkpoint names files in ``RUN/replay``; resuming goes on with the same replay, environments and random
    numbers (an environment that cannot go back to its place begins a new episode). Each checkpoint writes what changed,
    which after some updates is every latent, 4 (D + S) bytes a row: with millions of rows let them be rare.
    ``test`` plays whole episodes; so does the validation of a fit, if ``val_episodes`` says so: the policy is held meanwhile,
    and what it meets is not learnt from.

    Only ``StepCheckpoint`` deletes files of the replay, those of the checkpoints that it wrote over. What anybody else
    saved (``trainer.save_checkpoint``, another callback) is listed in ``RUN/replay/kept-STEP-....txt`` and stays until
    that list is deleted. Going back to an earlier checkpoint leaves later ones whole: where the recording holds more
    than a checkpoint that is not ``last.ckpt``, or no longer what the checkpoint recorded, episodes from there on go to
    a new folder, ``RUN/episodes-2``.

    Args:
        env: ``sprites``, ``pong``, any Gymnasium id, or ``envpool:TASK``.
        env_args: options of the environment.
        num_envs: environments side by side (the reference: 16; 1 for Atari100k, Crafter and BSuite).
        processes: processes they are spread over; 0 steps them in this one.
        batch_size: B, sequences of a batch on each rank.
        clip_length: T, trained steps of a sequence; one more, before them, tells the state they start from.
        train_ratio: trained steps per environment step (the reference: 32; 256 for DMC vision, 1024 for DMC proprio).
        capacity: most rows held, on each rank. The reference's 5 million take 12 kB each for 64x64x3 pictures, and
            4 (D + S) bytes for latents (size1m: 2.2 kB); the oldest rows are dropped.
        start_after: sequences that must be there before training begins; None: as many as a batch has steps, B T.
        online_queue: draw each new, non-overlapping sequence once before drawing uniformly.
        seed: of the environments, the policy and the drawing.
        keep_episodes: write finished episodes to ``RUN/episodes``.
        val_episodes: whole episodes that each validation plays on each rank, each in an environment of its own, the same ones every
            time (``trainer.val_check_interval`` says when; their mean return is ``val/return``); 0: there is no validation.
        test_episodes: whole episodes that ``test`` plays, the same number in each environment.
        test_videos: of how many of them ``test`` keeps the pictures.
        epoch_batches: batches that Lightning calls an epoch.

    Raises:
        ExperienceError: an unknown environment or option, or an argument that cannot work.
    """

    def __init__(
        self,
        env: str,
        env_args: dict[str, Any] | None = None,
        num_envs: int = 16,
        processes: int = 0,
        batch_size: int = 16,
        clip_length: int = 64,
        train_ratio: float = 32.0,
        capacity: int = 5_000_000,
        start_after: int | None = None,
        online_queue: bool = True,
        seed: int = 0,
        keep_episodes: bool = True,
        val_episodes: int = 0,
        test_episodes: int = 100,
        test_videos: int = 1,
        epoch_batches: int = 1000,
    ) -> None:
        super().__init__()
        start_after = batch_size * clip_length if start_after is None else start_after
        for name, value, least in (
            ("num_envs", num_envs, 1),
            ("processes", processes, 0),
            ("batch_size", batch_size, 1),
            ("clip_length", clip_length, 2),
            ("start_after", start_after, 1),
            ("capacity", capacity, start_after + num_envs * (clip_length + 1)),
            ("seed", seed, 0),
            ("val_episodes", val_episodes, 0),
            ("test_episodes", test_episodes, 1),
            ("test_videos", test_videos, 0),
            ("epoch_batches", epoch_batches, 1),
        ):
            if value < least:
                raise ExperienceError(f"{name} is {value}, it must be at least {least}")
        if train_ratio <= 0:
            raise ExperienceError(f"train_ratio is {train_ratio}, it must be above 0")
        if online_queue and train_ratio < clip_length / (clip_length + 1):
            raise ExperienceError(
                f"train_ratio {train_ratio} is too low for online_queue: what is new alone would be more than is trained;"
                " give online_queue false"
            )
        if test_videos > -(-test_episodes // num_envs):
            raise ExperienceError(
                f"test_videos is {test_videos}, but each of {num_envs} environments plays {-(-test_episodes // num_envs)}"
                f" of {test_episodes} test_episodes, and one of them is filmed"
            )
        self.env_id, self.env_args = env, dict(env_args or {})
        self.num_envs, self.processes, self.keep_episodes = num_envs, processes, keep_episodes
        self.val_episodes, self.test_episodes, self.test_videos = val_episodes, test_episodes, test_videos
        self.settings = OnlineSettings(
            batch_size, clip_length, train_ratio, capacity, start_after, online_queue, seed, epoch_batches
        )
        self._spec = describe(env, **self.env_args)
        self._loader: OnlineLoader | None = None
        self._players: list[PlayLoader] = []
        self._resumed: dict[str, Any] | None = None
        self._weights_alone = False
        self._begin_fit()

    def _begin_fit(self) -> None:
        self._mark = secrets.token_hex(4)  # in the names of files, so that no fit takes another's for its own
        self._writes_over = False  # the checkpoint that is being saved replaces the one before
        self._saved: list[dict[str, Any]] = []  # replay states of that checkpoint and of the one before
        self._newest: tuple[int, dict[str, Any]] = (0, {})  # update and state of the last save, whoever asked for it

    @property
    def spec(self) -> dict[str, Any]:
        """What a model must be built for, as plain JSON types (``ExperienceSpec.to_dict()``)."""
        return self._spec.to_dict()

    def setup(self, stage: str) -> None:
        """Refuse a model that cannot act.

        Raises:
            ExperienceError: it has no policy, or there is nothing to play in this stage, or not all that begins would be counted.
        """
        model = self.trainer.lightning_module
        if not hasattr(model, "policy"):
            raise ExperienceError(
                f"{type(model).__name__} cannot act: a ReplayDataModule needs a model with a policy, such as"
                " DreamerModule; record shards with `lit-wm record` and give an EpisodeDataModule for the others"
            )
        if stage == "predict" or (stage == "validate" and not self.val_episodes):
            raise ExperienceError(
                f"a ReplayDataModule plays in `fit`, `validate` and `test`, there is nothing to {TrainerFn(stage).value}"
                + (": give val_episodes" if stage == "validate" else "")
            )
        if self.val_episodes and self.trainer.limit_val_batches not in (0, 1.0):
            raise ExperienceError(
                f"trainer.limit_val_batches {self.trainer.limit_val_batches} would count the episodes that end first, which are the"
                " short ones: leave it out, and set val_episodes"
            )

    def train_dataloader(self) -> OnlineLoader:
        """The environments are made here, and brought back to where the checkpoint left them."""
        state = self._my_part(self._resumed)
        self._begin_fit()
        rank = self.trainer.global_rank
        draws = np.random.SeedSequence(self.settings.seed, spawn_key=(rank,) if rank else ())
        self._loader = OnlineLoader(self._environments(TRAIN, self.num_envs), self._agent(TRAIN), self.settings, draws)
        here = False  # whether this run goes on in its own folder
        if state is not None:
            origin = self._run.origin(self._named(REPLAY), state)
            here = self._run.path is not None and origin == self._run.path.resolve()
            place = origin / self._named(REPLAY)
            self._loader.load(state, place, here)
            if here and self._run.from_last:
                self._saved = [state["replay"]]
            elif here:
                Replay.keep(place, state["replay"])
            if gone := self._loader.not_restored:
                rank_zero_warn(f"{gone} environments could not go back to their place and begin new episodes")
        elif self.trainer.ckpt_path or self.trainer.global_step:
            rank_zero_warn(
                f"training goes on from update {self.trainer.global_step} with an empty replay and new environments:"
                " what it goes on from holds no replay"
            )
        # after the replay is known to be whole: a writer cuts off what came later
        self._loader.writer = self._writer(state["writer"] if state is not None and here else None)
        self._resumed = None
        for callback in self._run.others_that_replace:
            rank_zero_warn(
                f"{type(callback).__name__} replaces its checkpoints, but the files of the replay that they name stay, and"
                " become ever more: give the Trainer lit_wm's StepCheckpoint alone, or let checkpoints be rare"
            )
        rows, memory = self.settings.capacity, os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        if (full := rows * self._loader.replay.row_bytes) > memory:
            rank_zero_warn(
                f"capacity: {rows:,} rows will take {full / 1e9:.0f} GB if the run is long enough to fill them, and this"
                f" machine has {memory / 1e9:.0f}"
            )
        return self._loader

    def val_dataloader(self) -> PlayLoader | list[None]:
        return self._player(VAL, self.val_episodes, self.val_episodes, 0) if self.val_episodes else []

    def test_dataloader(self) -> PlayLoader:
        return self._player(TEST, self.num_envs, self.test_episodes, self.test_videos)

    def _player(self, stream: int, num_envs: int, episodes: int, videos: int) -> PlayLoader:
        environments = partial(self._environments, stream, num_envs)
        self._players.append(PlayLoader(environments, num_envs, self._agent(stream), episodes, videos))
        return self._players[-1]

    def write_back(self, batch: dict[str, torch.Tensor], latents: dict[str, torch.Tensor]) -> None:
        """Newer latents for rows 1..T of a batch; see :meth:`OnlineLoader.write_back`."""
        if self._loader is not None:
            self._loader.write_back(batch, latents)

    def newest(self, clips: int, steps: int) -> dict[str, torch.Tensor] | None:
        """What the environments of this rank did last; see :meth:`OnlineLoader.newest`."""
        return self._loader.newest(clips, steps) if self._loader is not None else None

    def statistics(self) -> dict[str, float]:
        """What a training step logs about the data of all ranks. A collective under DDP."""
        if self._loader is None:
            return {}
        return over_ranks(self._of_all_ranks(self._loader.statistics()))

    def teardown(self, stage: str) -> None:
        """End the environments, and finish the shards of what was played. Nothing is left for another run to take up."""
        for source in (self._loader, *self._players):
            if source is not None:
                source.close()
        self._loader, self._players, self._resumed = None, [], None

    def on_exception(self, exception: BaseException) -> None:
        """Lightning does not tear down after an exception; what was finished is to be seen, and no process left."""
        self.teardown("fit")

    # ---- what a checkpoint holds -------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """The state of every rank; the replays themselves lie in the run's folder. A collective under DDP.

        After a fit it is the one that was saved at its last update; empty, with a warning, if none was. Empty too where a checkpoint
        is to hold weights alone (:meth:`weights_alone`).
        """
        if self._weights_alone:
            return {}
        if self._loader is None:
            return self._state_after_fit()
        folder = self._run.path
        if folder is None:
            raise ExperienceError(
                "this run has no folder for its replay: give the Trainer a logger, or lit_wm's StepCheckpoint"
            )
        steps = self._loader.collector.env_steps  # two saves at one update, as after an exception, are two states
        tag = f"{self.trainer.global_step:08d}-{self._loader.batches}-{steps}-{self._mark}"
        state = self._loader.state(folder / self._named(REPLAY), tag)
        if self._writes_over:
            self._saved = [*self._saved, state["replay"]][-2:]
        else:
            Replay.keep(folder / self._named(REPLAY), state["replay"])
        state |= {"env": self.env_id, "env_args": self._played_args(), "folder": str(folder.resolve())}
        self._newest = self.trainer.global_step, {"ranks": self._of_all_ranks(state)}
        return self._newest[1]

    def _state_after_fit(self) -> dict[str, Any]:
        update, state = self._newest
        if state and update == self.trainer.global_step:
            mine = state["ranks"][self.trainer.global_rank]
            Replay.keep(Path(mine["folder"], self._named(REPLAY)), mine["replay"])
            return state
        if self.trainer.global_step:
            rank_zero_warn(
                "this checkpoint holds no replay, because the fit is over: it can be tested, but not gone on with. Save it"
                " while the fit lasts, or give the Trainer lit_wm's StepCheckpoint, which saves the last update"
            )
        return {}

    @contextmanager
    def weights_alone(self) -> Iterator[None]:
        """Around the saving of a checkpoint that nobody will go on from, and that needs no replay."""
        self._weights_alone = True
        try:
            yield
        finally:
            self._weights_alone = False

    @contextmanager
    def written_over(self, path: Path) -> Iterator[None]:
        """Around the saving of a checkpoint that replaces the one before at ``path``, for the callback that does so.

        Once it is there, files of the replay are deleted that neither it, nor the one before (a plugin may write later than
        it says), nor anything that somebody else saved needs; none while other checkpoints lie beside it, which may be
        copies of it (but for the best weights, which name no replay).
        """
        self._writes_over = True
        try:
            yield
        finally:
            self._writes_over = False
        folder = self._run.path
        if (
            self._saved
            and folder is not None
            and {file.name for file in path.parent.glob("*.ckpt")} <= {path.name, BEST}
        ):
            Replay.tidy(folder / self._named(REPLAY), self._saved)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Kept until the environments are there; only a fit goes on."""
        self._resumed = state_dict if self.trainer.state.fn == TrainerFn.FITTING else None

    def _my_part(self, state: dict[str, Any] | None) -> dict[str, Any] | None:
        if not state:
            return None
        if len(state["ranks"]) != self.trainer.world_size:
            raise ExperienceError(
                f"the checkpoint holds the replays of {len(state['ranks'])} ranks, this run has"
                f" {self.trainer.world_size}: resume with as many"
            )
        mine = state["ranks"][self.trainer.global_rank]
        here = self._played_args()
        if (mine["env"], self._played_args(mine["env_args"])) != (self.env_id, here):
            raise ExperienceError(
                f"the checkpoint's replay is of {mine['env']} {mine['env_args']}, not of {self.env_id} {here}"
            )
        return mine

    def _played_args(self, args: dict[str, Any] | None = None) -> dict[str, Any]:
        """Options of the environment but for how it is drawn for a video, which changes nothing that is played."""
        args = self.env_args if args is None else args
        return {name: value for name, value in args.items() if name != "render_mode"}

    def _of_all_ranks(self, mine: dict[str, Any]) -> list[dict[str, Any]]:
        if self.trainer.world_size == 1:
            return [mine]
        ranks: list[Any] = [None] * self.trainer.world_size
        dist.all_gather_object(ranks, mine)
        return ranks

    # ---- where things are ----------------------------------------------------------------------------------------

    @property
    def _run(self) -> RunFolder:
        return RunFolder(self.trainer)

    def _named(self, name: str) -> str:
        """A folder of this rank's own."""
        return name if self.trainer.global_rank == 0 else f"{name}_rank{self.trainer.global_rank}"

    def _seed(self, stream: int) -> int:
        words = [self.settings.seed, self.trainer.global_rank, stream]
        return int(np.random.SeedSequence(words).generate_state(1)[0])

    def _environments(self, stream: int, num_envs: int) -> Any:
        return vector_env(self.env_id, num_envs, self._seed(stream), min(self.processes, num_envs), **self.env_args)

    def _agent(self, stream: int) -> Any:
        return self.trainer.lightning_module.policy(self._seed(stream))

    def _writer(self, recorded: dict[str, Any] | None) -> ShardWriter | None:
        """What writes finished episodes, going on from the state it had in the run that goes on here, if any."""
        folder = self._run.path
        if not self.keep_episodes or self.trainer.fast_dev_run:
            return None
        if folder is None:
            rank_zero_warn(
                "keep_episodes: this run has neither logger nor checkpoint folder of its own, so it has no folder to keep them in"
            )
            return None
        root = folder / self._named(EPISODES)
        if recorded is not None:
            root, recorded = self._recording(root, recorded)
        elif self._run.is_without_checkpoints and not list((folder / self._named(REPLAY)).glob(KEPT)):
            forget(root)  # of a run that was stopped before anything was saved
        return ShardWriter(
            root,
            self._spec,
            environment={"id": self.env_id, **self.env_args},
            policy=type(self.trainer.lightning_module).__name__,
            seed=self.settings.seed,
            resume=recorded,
        )

    def _recording(self, root: Path, recorded: dict[str, Any]) -> tuple[Path, dict[str, Any] | None]:
        """The recording to go on with and its state, or the folder of a new one, where going on would destroy what other
        checkpoints recorded."""
        old = root.with_name(recorded.get("folder", root.name))
        reason = lost(old, recorded)
        if reason is None and holds_more(old, recorded) and not self._run.from_last:
            reason = f"{old} holds episodes that were played after this checkpoint, which later ones may name"
        if reason is None:
            return old, recorded
        new = next_to(root)
        rank_zero_warn(f"{reason}: this run goes on, and records from here on in {new}")
        return new, None
