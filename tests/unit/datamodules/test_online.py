"""OnlineLoader: acting keeps to the train ratio, batches are sequences of the replay, latents go back to where they are from."""

from functools import partial

import numpy as np
import pytest
import tiny_routes
import torch
from lightning import Trainer
from test_collector import SPEC, Counter, Cycle

from datamodules.envs.registry import environment_seeds, vector_env
from datamodules.envs.workers import SturdyVectorEnv
from datamodules.experience import ExperienceError
from datamodules.online import OnlineLoader, OnlineSettings, arrays_of, over_ranks, tensors_of
from datamodules.play import PlayLoader
from datamodules.replay import ReplayDataModule


class Agent(Cycle):
    latents = {"count": ((1,), np.dtype(np.float32))}  # noqa: RUF012 (one layout for all)


class Balancer(Agent):
    """For CartPole, which can be taken up again: left and right by turns."""

    def act(self, observation, is_first, state):
        _, later, extras = super().act(observation, is_first, state)
        return np.full(len(is_first), state % 2), later, extras


def loader(n=2, env=None, agent=None, **changes):
    sizes = {"batch_size": 2, "clip_length": 3, "train_ratio": 2.0, "capacity": 1000, "start_after": 4}
    settings = OnlineSettings(**(sizes | {"online_queue": False, "seed": 0, "epoch_batches": 5} | changes))
    env = env or SturdyVectorEnv([partial(Counter)] * n, environment_seeds(0, n))
    return OnlineLoader(env, agent or Agent(), settings)


@pytest.mark.parametrize(("n", "ratio", "batch", "length"), [(2, 2.0, 2, 3), (5, 0.5, 2, 4), (1, 30.0, 3, 5)])
def test_as_many_steps_are_trained_for_each_step_acted_as_the_ratio_says(n, ratio, batch, length):
    online = loader(n, train_ratio=ratio, batch_size=batch, clip_length=length)
    online.next_batch()
    began = online.collector.env_steps
    for _ in range(60):
        online.next_batch()
    trained, acted = 60 * batch * length, online.collector.env_steps - began
    assert abs(trained - ratio * acted) <= max(ratio * n, batch * length)
    assert online.statistics()["replay/ratio"] == pytest.approx(61 * batch * length / online.collector.env_steps)


def test_nothing_is_trained_before_there_is_enough():
    online = loader(start_after=20)
    online.next_batch()
    assert 20 <= online.replay.sequences < 20 + 2 * 2  # then two steps of both environments earn the first batch


def test_batches_are_sequences_with_one_row_before_them():
    online = loader()
    batch = online.next_batch()
    assert (
        batch["vector"].shape == (2, 4, 2) and batch["action"].shape == (2, 4) and batch["latent_count"].shape == (2, 1)
    )
    for b in range(2):
        rows = online.replay.rows(int(batch["stream"][b]), int(batch["step"][b]), int(batch["step"][b]) + 4)
        assert np.array_equal(rows["vector"], batch["vector"][b]) and batch["latent_count"][b, 0] == batch["step"][b]
    assert not {"state"} & batch.keys()


def test_latents_go_back_to_the_rows_that_were_trained():
    online = loader(n=1)
    batch = online.next_batch()
    online.write_back(batch, {"count": torch.arange(100.0, 106.0).view(2, 3, 1)})
    block = online.replay.streams[0].blocks[0]
    for b, step in enumerate(batch["step"].tolist()):
        if b == 1 or abs(step - int(batch["step"][1])) > 3:
            assert block.latents["count"][step + 1 : step + 4, 0].tolist() == [100 + 3 * b, 101 + 3 * b, 102 + 3 * b]
    untouched = set(range(block.size)) - {s + i for s in batch["step"].tolist() for i in (1, 2, 3)}
    assert all(block.latents["count"][i, 0] == i for i in untouched)


def test_an_environment_that_cannot_go_back_begins_another_episode_and_its_old_one_is_closed(tmp_path):
    """The counter ends every other episode by a time limit, whatever its seed: it is not where it was."""
    online, again = loader(train_ratio=1.0), loader(train_ratio=1.0)
    for _ in range(6):
        online.next_batch()
    online.collector.observation["vector"] += 1  # what it sees there again will not be this
    again.load(online.state(tmp_path, "a"), tmp_path, own=True)
    assert again.not_restored == 2 and again.collector.is_first.all() and not again.collector.sums.any()
    for stream in again.replay.streams:
        assert stream.blocks[-1].rows["is_last"][stream.blocks[-1].size - 1]
    count = again.replay.streams[0].count
    again.collector.step(again.agent)
    row = again.replay.rows(0, count, count + 1)
    assert row["is_first"][0] and row["vector"][0].tolist() == [0, -1] and row["reward"][0] == 0


@pytest.mark.parametrize("queue", [False, True])
def test_it_goes_on_from_a_saved_state_as_if_it_had_never_stopped(tmp_path, queue):
    def made():
        return loader(2, vector_env("CartPole-v1", 2, 0), Balancer(), online_queue=queue, capacity=60)

    online, again = made(), made()
    for _ in range(23):
        online.next_batch()
    online.env.deaths = 3
    state = online.state(tmp_path, "a")
    again.load(state, tmp_path, own=True)
    assert again.not_restored == 0 and again.env.deaths == 3
    for _ in range(30):
        ours, theirs = online.next_batch(), again.next_batch()
        assert ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)
    ours, theirs = online.statistics(), again.statistics()
    assert ours.pop("env/steps_per_second") and theirs.pop("env/steps_per_second") and ours == theirs


def test_a_state_of_other_environments_is_refused(tmp_path):
    online = loader()
    online.next_batch()
    state = online.state(tmp_path, "a")
    with pytest.raises(ExperienceError, match="of 2 environments, not of 3"):
        loader(n=3).load(state, tmp_path, own=True)


def test_the_ratio_is_kept_where_the_replay_is_as_small_as_may_be():
    """Dropping a block takes it below what training was to begin with; it has begun."""
    settings = {"train_ratio": 8.0, "batch_size": 7, "clip_length": 8, "start_after": 56, "capacity": 65}
    online = loader(1, **settings)
    online.next_batch()
    began = online.collector.env_steps
    for _ in range(200):
        online.next_batch()
    assert 200 * 56 / (online.collector.env_steps - began) == pytest.approx(8, rel=0.02)


def test_the_newest_rows_are_of_one_episode_each_and_nothing_is_drawn():
    online = loader(3)
    assert online.newest(2, 4) is None
    online.next_batch()
    for _ in range(7):  # somewhere within an episode of 5
        online.collector.step(online.agent)
        before = online.replay.generator.bit_generator.state
        clip = online.newest(2, 4)
        assert online.replay.generator.bit_generator.state == before
        assert clip["vector"].shape == (2, 4, 2) and not clip["is_first"][:, 1:].any()
        assert (clip["vector"][:, 1:, 0] - clip["vector"][:, :-1, 0] == 1).all()
        count = online.replay.streams[0].count
        t = online.replay.rows(0, count - 1, count)["vector"][0, 0]
        assert clip["vector"][0, -1, 0] == (t if t >= 3 else 4), "of the open episode as soon as it is long enough"
    assert online.newest(2, 40)["is_first"].shape == (2, 5)


def test_what_ranks_counted_adds_up_and_what_they_averaged_does_not():
    ranks = [{"env/steps": 64.0, "replay/ratio": 2.0}, {"env/steps": 60.0, "replay/ratio": 1.0, "env/return": 5.0}]
    assert over_ranks(ranks) == {"env/steps": 124, "replay/ratio": 1.5, "env/return": 5}


def test_arrays_survive_as_tensors():
    tree = {"a": np.arange(3), "b": [np.zeros((2, 0), bool), "word", 1.5, None], "c": {"d": np.float32(2)}}
    back = arrays_of(tensors_of(tree))
    assert (
        np.array_equal(back["a"], tree["a"]) and back["b"][0].shape == (2, 0) and back["b"][1:] == ["word", 1.5, None]
    )


def test_each_environment_plays_the_same_number_of_whole_episodes():
    player = PlayLoader(lambda: SturdyVectorEnv([partial(Counter)] * 3, environment_seeds(0, 3)), 3, Agent(), 7, 1)
    played = list(player)
    assert len(player) == 9
    assert len(played) == 9 and all(int(episode["episode_length"]) == 4 for episode in played)
    assert all(float(episode["episode_return"]) in (3, 4, 5) for episode in played)  # of 1 2 0 1 2 0 ..., four in a row


class Drawn(Counter):
    """Shows numbers, and draws the time as a shade of grey."""

    def __init__(self, render_mode="rgb_array"):
        super().__init__()
        self.render_mode = render_mode

    def render(self):
        if self.render_mode == "human":
            raise AssertionError("asked to draw a picture, it would open a window")
        return np.full((8, 6, 3), 10 * self.t, np.uint8)


@pytest.mark.parametrize("processes", [0, 2])
def test_what_is_played_without_pictures_is_drawn_if_the_environment_can(processes):
    played = list(
        PlayLoader(lambda: SturdyVectorEnv([Drawn] * 2, environment_seeds(0, 2), processes), 2, Agent(), 4, 1)
    )
    videos = [episode["frames"] for episode in played if "frames" in episode]
    assert len(videos) == 1 and videos[0].shape == (1, 5, 3, 8, 6) and videos[0].dtype == torch.uint8
    assert videos[0][0, :, 0, 0, 0].tolist() == [0, 10, 20, 30, 40]
    human = PlayLoader(lambda: SturdyVectorEnv([partial(Drawn, "human")], environment_seeds(0, 1)), 1, Agent(), 1, 1)
    assert not any("frames" in episode for episode in human)


def test_an_environment_that_cannot_draw_says_why():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Drawn, "render", lambda self: 1 / 0)
        player = PlayLoader(lambda: SturdyVectorEnv([Drawn], environment_seeds(0, 1)), 1, Agent(), 1, 1)
        with pytest.raises(ExperienceError, match="the environment cannot draw itself: division by zero"):
            list(player)


def test_an_episode_that_dies_does_not_count():
    player = PlayLoader(
        lambda: SturdyVectorEnv([partial(Counter, dies_at=3)], environment_seeds(0, 1)), 1, Agent(), 1, 0
    )
    loader = iter(player)
    with pytest.raises(ExperienceError, match="environment 0 died 21 times"):
        next(loader)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"env": "CartPole-v7"}, "CartPole-v7"),
        ({"env": "sprites", "env_args": {"sise": 3}}, "sprites has no option 'sise'"),
        ({"env": "CartPole-v1", "num_envs": 0}, "num_envs is 0"),
        ({"env": "CartPole-v1", "clip_length": 1}, "clip_length is 1"),
        ({"env": "CartPole-v1", "capacity": 1000}, "capacity is 1000, it must be at least 2064"),
        ({"env": "CartPole-v1", "train_ratio": 0}, "train_ratio is 0"),
    ],
)
def test_what_cannot_work_is_refused_when_it_is_made(options, message):
    with pytest.raises(ExperienceError, match=message):
        ReplayDataModule(**options)


@pytest.mark.filterwarnings("ignore:.*does not have many workers")
def test_a_capacity_beyond_the_machine_is_said(tmp_path):
    data = ReplayDataModule(
        env="CartPole-v1", num_envs=2, batch_size=2, clip_length=3, capacity=10**13, keep_episodes=False
    )
    trainer = Trainer(
        max_steps=1, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False
    )
    with pytest.warns(UserWarning, match=r"capacity: 10,000,000,000,000 rows will take [\d]+ GB"):
        trainer.fit(tiny_routes.tiny("dreamer", data.spec), datamodule=data)


def test_it_describes_itself_to_the_model():
    assert ReplayDataModule(env="CartPole-v1").spec["observations"] == {"vector": [4]}
    assert SPEC.observations == {"vector": (2,)}
