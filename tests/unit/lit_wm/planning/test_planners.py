"""Planners against published numbers, and on costs whose optimum is known."""

import itertools
import json
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch

from lit_wm.errors import UserError
from lit_wm.planning.gradient import GradientPlanner
from lit_wm.planning.proposals import Categorical, Gaussian, coloured
from lit_wm.planning.sampling import CEM, MPPI, icem

GOLDEN = json.loads((Path(__file__).parents[3] / "data" / "jepa" / "jepa.json").read_text())["sections"]["cem"]
DTYPES = {"float64": torch.float64, "float32": torch.float32}
both = pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES.keys())


def fill(name, shape, scale=1.0):
    noise = np.random.RandomState(zlib.crc32(name.encode())).randn(*shape)
    return torch.from_numpy((scale * noise).astype(np.float32))


class Scripted(Gaussian):
    """A Gaussian whose noise is the file's."""

    noise: list  # set by the test: what the iterations draw, in order

    def draw(self, samples, generator=None):
        return self.shaped(self.noise.pop(0).to(self.mean_bha))


def quadratic(goal, weight):
    return lambda actions: (weight * (actions - goal.unsqueeze(1)).square()).sum((-1, -2))


def golden_problem(dtype, start=None):
    goal = fill("A.cem.goal", (2, 4, 3)).to(dtype)
    weight = fill("A.cem.weight", (4, 3)).to(dtype).abs() + 0.5
    mean = torch.zeros(2, 4, 3, dtype=dtype) if start is None else start
    Scripted.noise = [fill(f"A.cem.noise.{i}", (2, 64, 4, 3)) for i in range(5)]
    return quadratic(goal, weight), Scripted(mean, torch.ones(2, 4, 3, dtype=dtype))


def golden_values(dtype, name):
    return GOLDEN["values_f64" if dtype == torch.float64 else "values"][name]


def near(dtype):
    return {"rtol": 1e-8, "atol": 1e-9} if dtype == torch.float64 else {"rtol": 2e-5, "atol": 1e-5}


@both
@pytest.mark.parametrize("iterations", [1, 2, 3, 4, 5])
def test_cem_is_that_of_stable_worldmodel_iteration_by_iteration(dtype, iterations):
    cost, proposal = golden_problem(dtype)
    plan = CEM(64, 8, iterations).plan(cost, proposal)
    wanted = golden_values(dtype, "swm_cem")["iterations"][iterations - 1]
    torch.testing.assert_close(plan.proposal.mean_bha, torch.tensor(wanted["mean"], dtype=dtype), **near(dtype))
    torch.testing.assert_close(plan.proposal.std_bha, torch.tensor(wanted["std"], dtype=dtype), **near(dtype))
    torch.testing.assert_close(plan.history[-1], torch.tensor(wanted["elite_cost"]["min"], dtype=dtype), **near(dtype))
    assert torch.equal(plan.actions_bha, plan.proposal.mean_bha)


@both
def test_a_warm_start_is_that_of_stable_worldmodel(dtype):
    start = torch.zeros(2, 4, 3, dtype=dtype)
    start[:, :3] = fill("A.cem.init", (2, 3, 3))
    for i, wanted in enumerate(golden_values(dtype, "swm_cem_warm_start")["means"], 1):
        cost, proposal = golden_problem(dtype, start)
        plan = CEM(64, 8, i).plan(cost, proposal)
        torch.testing.assert_close(plan.actions_bha, torch.tensor(wanted, dtype=dtype), **near(dtype))


@both
def test_momentum_and_bounds_are_those_of_v_jepa_2_ac(dtype):
    """Its actions are x, y, z within .05 and a gripper within .75; the world is linear in them."""
    matrix = fill("A.cem.ac_matrix", (7, 10), 3.0).to(dtype)[[0, 1, 2, 6]]
    goal = fill("A.cem.ac_goal_delta", (1, 1, 2, 5), 0.3).to(dtype).view(1, 1, 10)  # less the context, which cancels
    bound = torch.tensor([0.05, 0.05, 0.05, 0.75], dtype=dtype)
    momentum = torch.tensor([[0.25] * 3 + [0.15], [0.95] * 3 + [0.15]], dtype=dtype)
    std = torch.tensor([0.05, 0.05, 0.05, 1.0], dtype=dtype).expand(1, 2, 4)
    wanted = golden_values(dtype, "vjepa2_ac_cem")["iterations"]
    for n, iteration in enumerate(wanted, 1):
        Scripted.noise = [
            torch.stack([fill(f"A.cem.ac_noise.{i}.{h}", (60, 4)) for h in range(2)], 1)[None] for i in range(n)
        ]
        proposal = Scripted(torch.zeros(1, 2, 4, dtype=dtype), std, -bound, bound)
        planner = CEM(60, 6, n, momentum[0], momentum[1], try_mean=False)
        plan = planner.plan(lambda a: ((a @ matrix).sum(2) - goal).abs().mean(-1), proposal)
        found = plan.proposal
        torch.testing.assert_close(found.mean_bha[0], torch.tensor(iteration["mean"], dtype=dtype), **near(dtype))
        torch.testing.assert_close(found.std_bha[0], torch.tensor(iteration["std"], dtype=dtype), **near(dtype))


def optimum(b=3, h=5, a=2, seed=0):
    return 0.8 * torch.rand(b, h, a, generator=torch.Generator().manual_seed(seed)) - 0.4


def broad(b=3, h=5, a=2, std=0.5, **options):
    return Gaussian(torch.zeros(b, h, a), std * torch.ones(b, h, a), -1.0, 1.0, **options)


PLANNERS = {
    "cem": (CEM(200, 20, 15), {}),
    "icem": (icem(200, 20, 15), {"colour": 2.0}),
    "mppi": (MPPI(1000, 0.02, 20), {"fixed_std": True, "std": 0.2}),
    "gradient": (GradientPlanner(4, 100, 0.05), {}),
}


@pytest.mark.parametrize("name", PLANNERS)
def test_continuous_planners_find_the_optimum_of_every_problem(name):
    planner, options = PLANNERS[name]
    goal = optimum()
    plan = planner.plan(quadratic(goal, 1.0), broad(**options), torch.Generator().manual_seed(0))
    assert (plan.actions_bha - goal).abs().max() < 0.15
    assert plan.cost_b.shape == (3,) and (plan.history[-1] <= plan.history[0] + 1e-6).all()


DISCRETE = {
    "cem": CEM(100, 10, 10),
    "icem": icem(100, 10, 10),
    "mppi": MPPI(300, 0.3, 10),
    "gradient": GradientPlanner(4, 60, 0.3),
}


@pytest.mark.parametrize("name", DISCRETE)
def test_discrete_planners_find_the_one_right_sequence(name):
    right = torch.randint(0, 4, (3, 5), generator=torch.Generator().manual_seed(1))
    one_hot = torch.nn.functional.one_hot(right, 4).float()

    def cost(actions):
        return (actions - one_hot.unsqueeze(1)).square().sum((-1, -2))

    plan = DISCRETE[name].plan(cost, Categorical(torch.full((3, 5, 4), 0.25)), torch.Generator().manual_seed(0))
    assert torch.equal(plan.actions_bha, one_hot) and (plan.cost_b < 1e-6).all()


@pytest.mark.parametrize("name", PLANNERS)
def test_problems_do_not_disturb_each_other(name):
    """A problem's plan depends on its own cost alone."""
    planner, options = PLANNERS[name]
    goals = optimum()
    other = goals.clone()
    other[1:] = -other[1:]
    a, b = (
        planner.plan(quadratic(g, 1.0), broad(**options), torch.Generator().manual_seed(0)).actions_bha
        for g in (goals, other)
    )
    assert torch.equal(a[0], b[0]) and not torch.equal(a[1], b[1])


@pytest.mark.parametrize("name", PLANNERS)
def test_the_same_seed_finds_the_same_plan(name):
    planner, options = PLANNERS[name]
    a, b, c = (
        planner.plan(quadratic(optimum(), 1.0), broad(**options), torch.Generator().manual_seed(seed)).actions_bha
        for seed in (0, 0, 1)
    )
    assert torch.equal(a, b)
    if name != "gradient":  # of a convex cost, whose descent from the mean is the best wherever the others begin
        assert not torch.equal(a, c)


@pytest.mark.parametrize("name", PLANNERS)
def test_bounds_are_kept(name):
    planner, options = PLANNERS[name]
    plan = planner.plan(quadratic(optimum() + 5, 1.0), broad(**options), torch.Generator().manual_seed(0))
    assert plan.actions_bha.max() <= 1 and plan.actions_bha.min() > 0.6


def test_mppi_weighs_by_temperature():
    """Hot, all samples count alike; cold, only the cheapest."""
    goal = optimum()
    mean, cheapest = (
        MPPI(64, temperature).plan(quadratic(goal, 1.0), broad(fixed_std=True), torch.Generator().manual_seed(0))
        for temperature in (1e6, 1e-6)
    )
    drawn = broad().draw(64, torch.Generator().manual_seed(0))
    torch.testing.assert_close(mean.actions_bha, drawn.mean(1), rtol=1e-3, atol=1e-4)
    best = quadratic(goal, 1.0)(drawn).argmin(1)
    torch.testing.assert_close(cheapest.actions_bha, drawn[torch.arange(3), best])
    assert torch.equal(mean.proposal.std_bha, broad().std_bha)


def test_coloured_noise_is_smooth_and_keeps_its_variance():
    white = torch.randn(20000, 16, generator=torch.Generator().manual_seed(0))
    red = coloured(white, 2.0)
    assert torch.equal(coloured(white, 0.0), white)
    torch.testing.assert_close(red.var(0), torch.ones(16), rtol=0, atol=0.05)
    roughness = (red[:, 1:] - red[:, :-1]).square().mean() / (white[:, 1:] - white[:, :-1]).square().mean()
    assert roughness < 0.25


def test_a_shrinking_population_never_falls_below_twice_the_elites():
    sizes = []

    def cost(actions):
        sizes.append(actions.shape[1])
        return actions.square().sum((-1, -2))

    icem(100, 20, 12).plan(cost, broad(colour=2.0), torch.Generator().manual_seed(0))
    assert sizes[0] == 100 and sizes[-1] == 40 + 6 and all(a + 6 >= b for a, b in itertools.pairwise(sizes))


def test_one_sample_of_the_law_is_its_mean():
    seen = []

    def cost(actions):
        seen.append(actions)
        return actions.square().sum((-1, -2))

    CEM(10, 2, 1).plan(cost, broad(), torch.Generator().manual_seed(0))
    assert torch.equal(seen[0][:, 0], torch.zeros(3, 5, 2)) and not (seen[0][:, 1] == 0).any()


def test_a_cost_that_is_no_number_is_refused():
    with pytest.raises(UserError, match="not finite"):
        CEM(10, 2, 1).plan(lambda a: a.sum((-1, -2)) / 0, broad())


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: CEM(10, 20), "elites of the CEM planner is 20, but it draws 10"),
        (lambda: CEM(10, 1), "elites of the CEM planner is 1"),
        (lambda: CEM(keep=2.0), "keep of the CEM planner"),
        (lambda: MPPI(temperature=0.0), "temperature of the MPPI planner is 0.0, it must be above 0"),
        (lambda: GradientPlanner(lr=0.0), "lr of the gradient planner"),
        (lambda: coloured(torch.zeros(4), -1.0), "colour"),
    ],
)
def test_settings_that_cannot_work_are_refused(make, says):
    with pytest.raises(UserError, match=says):
        make()
