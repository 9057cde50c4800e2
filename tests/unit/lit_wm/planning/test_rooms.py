"""Planning in the rooms: the true world is the environment's, the agent's wiring is right, floors and ceiling are where they belong."""

import numpy as np
import pytest
import torch

from datamodules.envs.sprites import SpritesEnv
from datamodules.experience import ActionSpace, ExperienceError
from lit_wm.errors import UserError
from lit_wm.planning.agent import Horizon, PlanningAgent
from lit_wm.planning.costs import ImaginedDistance, latent, probed
from lit_wm.planning.proposals import Categorical, Gaussian
from lit_wm.planning.rooms import TrueWorld, as_clips, play
from lit_wm.planning.sampling import CEM

PLANNER = CEM(300, 20, 4, momentum_mean=0.1, keep=0.3, follow_best=True)
FAR = Horizon(24, along=0.2, stick=0.75)


def make(size=32):
    return SpritesEnv(size=size, rooms=True)


def one_hot(actions, k=5):
    return torch.nn.functional.one_hot(torch.as_tensor(actions), k).float()


@pytest.mark.parametrize("size", [32, 64])
def test_the_true_world_moves_as_the_environment(size):
    env, world = make(size), TrueWorld(make(size))
    rng = np.random.default_rng(0)
    for seed in range(20):
        observation, _ = env.reset(seed=seed)
        state = {key: x[:, 0] for key, x in world.observe(as_clips(env.experience, [[observation]], [[0]])).items()}
        actions, places = np.repeat(rng.integers(0, 5, 10), 4), []
        for action in actions:
            observation, _, terminated, truncated, _ = env.step(int(action))
            places.append(observation["state"][:2])
            if terminated or truncated:
                break
        imagined = world.features(world.imagine(state, one_hot(actions)[None]))[0, 0, : len(places)]
        assert np.array_equal(imagined.numpy(), np.array(places))


@pytest.mark.parametrize("size", [32, 64])
def test_the_goal_is_the_picture_one_will_see_there(size):
    """Walk there as the oracle does: agent, goal, door and wall are where the goal's picture had them; only the ball went on."""
    env = make(size)
    observation, _ = env.reset(seed=3)
    goal, field = env.goal_observation(), env.field
    assert np.array_equal(env._observation()["frames"], observation["frames"]), "asking changes nothing"
    over = False
    while not over:
        x, y, gx, gy = observation["state"][:4].astype(int)
        door = int(observation["state"][10])
        observation, _, terminated, truncated, _ = env.step(field.oracle_action((x, y), (gx, gy), door))
        over = terminated or truncated
    below = slice(8 * size // 32, None)
    distance = np.abs(goal["state"][:2] - observation["state"][:2]).max()
    assert terminated and distance < field.ring
    if distance == 0:
        assert np.array_equal(goal["frames"][below], observation["frames"][below])
    with pytest.raises(ExperienceError, match="no goal before reset"):
        make().goal_observation()


def test_the_same_planner_in_the_true_world_reaches_the_goal():
    env = make()
    agent = PlanningAgent(TrueWorld(env), PLANNER, env.experience.action, FAR)
    outcome = play(make, list(range(16)), agent.begin, lambda history, envs: agent.act(history).argmax(-1).numpy())
    assert outcome.reached.mean() > 0.9 and len(agent.seconds) >= outcome.steps.max()


def test_random_play_does_not():
    rng = np.random.default_rng(0)
    outcome = play(make, list(range(40)), None, lambda history, envs: rng.integers(0, 5, len(envs)))
    assert outcome.reached.mean() < 0.2 and outcome.rate()[2] < 0.3


class Line:
    """A world of one number that actions add to; remembers what it was asked."""

    action_space, codes, labels = "environment", None, ("frames", "actions")

    def __init__(self):
        self.asked = []

    def observe(self, batch):
        self.observed = batch
        return {"x": batch["x"]}

    def imagine(self, state, actions, samples=1, temperature=1.0, generator=None):
        self.asked.append(actions)
        return {"x": (state["x"].unsqueeze(1) + actions.cumsum(1)).unsqueeze(1)}

    def feature_map(self, state):
        return None

    def features(self, state):
        return state["x"]


def line_batch(x):
    x = torch.as_tensor(x, dtype=torch.float32)[..., None]
    first = torch.zeros(x.shape[:2], dtype=torch.bool)
    first[:, 0] = True
    return {"x": x, "is_first": first}


def test_the_cost_counts_the_end_and_the_way():
    world = Line()
    actions = torch.tensor([[[[1.0], [0.0]], [[0.0], [1.0]]]])  # now, or later
    state, goal = {"x": torch.zeros(1, 1)}, torch.ones(1, 1)
    end, way, mixed = (
        ImaginedDistance(world, state, goal, latent(world), 1, along)(actions) for along in (0.0, 1.0, 0.2)
    )
    assert end.tolist() == [[0, 0]] and way.tolist() == [[0, 0.5]]
    torch.testing.assert_close(mixed, torch.tensor([[0.0, 0.1]]))
    held = ImaginedDistance(world, state, 4 * goal, latent(world), hold=2)(actions)
    assert world.asked[-1].shape == (2, 4, 1) and held.tolist() == [[4, 4]]


def test_memory_is_bounded_and_results_are_not():
    world, state = Line(), {"x": torch.randn(3, 1)}
    actions = torch.randn(3, 10, 4, 1, generator=torch.Generator().manual_seed(0))
    whole, parts = (
        ImaginedDistance(world, state, torch.ones(3, 1), latent(world), most=most)(actions) for most in (100, 7)
    )
    torch.testing.assert_close(whole, parts)
    assert max(len(x) for x in world.asked[1:]) == 7


@pytest.mark.parametrize(("execute", "plans"), [(1, 6), (2, 3), (3, 2)])
def test_a_plan_is_followed_for_so_many_steps(execute, plans):
    world = Line()
    agent = PlanningAgent(world, CEM(50, 5, 3), ActionSpace("continuous", (1,)), Horizon(4, execute=execute))
    agent.begin(line_batch([[5.0], [-5.0]]))
    x = [[0.0], [0.0]]
    for _ in range(6):
        action = agent.act(line_batch(x))
        assert action.shape == (2, 1) and action[0] > 0 > action[1]
        x = [[*row, row[-1] + float(a)] for row, a in zip(x, action, strict=True)]
    assert len(agent.seconds) == plans and world.observed["x"].shape[1] <= agent.context
    assert world.observed["is_first"][:, 0].all(), "the past that is not shown is not there"


def test_the_next_search_begins_where_the_last_plan_goes_on():
    agent = PlanningAgent(Line(), CEM(200, 10, 5), ActionSpace("continuous", (1,)), Horizon(4, execute=2))
    agent.begin(line_batch([[1.2]]))
    agent.act(line_batch([[0.0]]))
    law = agent._proposal
    assert isinstance(law, Gaussian) and (law.mean_bha[:, 2:] == 0).all() and (law.std_bha == 0.5).all()
    discrete = PlanningAgent(
        TrueWorld(make()), CEM(20, 4, 2), make().experience.action, Horizon(4, execute=1, stick=0.5)
    )
    env = make()
    observation, _ = env.reset(seed=0)
    discrete.begin(as_clips(env.experience, [[env.goal_observation()]], [[0]]))
    discrete.act(as_clips(env.experience, [[observation]], [[0]]))
    law = discrete._proposal
    assert isinstance(law, Categorical) and law.stick == 0.5
    torch.testing.assert_close(law.law_bhk.sum(-1), torch.ones(1, 4))
    torch.testing.assert_close(law.law_bhk[:, -1], torch.full((1, 5), 0.2))


def test_sequences_stick_as_often_as_asked():
    law = torch.tensor([0.1, 0.2, 0.3, 0.4]).expand(1, 20, 4)
    for stick in (0.0, 0.75):
        drawn = Categorical(law, stick=stick).draw(4000, torch.Generator().manual_seed(0)).argmax(-1)[0]
        same = (drawn[:, 1:] == drawn[:, :-1]).float().mean()
        assert abs(same - (stick + (1 - stick) * 0.3)) < 0.01
        assert abs((drawn == 3).float().mean() - 0.4) < 0.02


def test_probed_places_are_the_places():
    """In a world whose features are the places, a probe finds them and the cost is in pixels."""
    env, world = make(), TrueWorld(make())
    episodes = [env.reset(seed=seed)[0] for seed in range(300)]
    clips = as_clips(env.experience, [[x] for x in episodes], [[0]] * 300)
    train, val = ({key: x[part] for key, x in clips.items()} for part in (slice(0, 200), slice(200, 300)))
    embed = probed(world, train, val, env.experience.factors, ("agent_x", "agent_y"))
    place = embed(world.observe(val))
    torch.testing.assert_close(place, val["state"][..., :2], rtol=0, atol=0.1)
    with pytest.raises(UserError, match="no paddle for the planner's cost; it has agent_x"):
        probed(world, train, val, env.experience.factors, ("paddle",))


class Codes(Line):
    action_space = "codes"


@pytest.mark.parametrize(
    ("attempt", "says"),
    [
        (lambda: Horizon(execute=6), "execute of the planner is 6, but a plan has 5 steps"),
        (lambda: Horizon(along=2.0), "along of the planner is 2.0"),
        (lambda: Horizon(stick=1.0), "stick of the planner is 1.0"),
        (lambda: Horizon(blocks=0), "blocks of the planner is 0"),
        (lambda: PlanningAgent(Codes(), PLANNER, ActionSpace("discrete", (3,)), FAR), "takes none or its own codes"),
        (lambda: PlanningAgent(Line(), PLANNER, ActionSpace("multi_discrete", (3, 2)), FAR), "not several classes"),
    ],
)
def test_what_cannot_be_planned_is_refused(attempt, says):
    with pytest.raises(UserError, match=says):
        attempt()
