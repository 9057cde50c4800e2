"""``lit-wm imitate RUN --expert FOLDER``: behaviour from video. RUN's latent actions label an expert's frames, a policy learns the
codes, a few labelled steps say what the codes do, and what comes of it is played in the environment."""

from __future__ import annotations

import functools
import logging
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from jsonargparse import ActionConfigFile, Namespace
from rich.console import Console

from datamodules.envs import describe
from datamodules.experience import ExperienceError, Policy
from datamodules.index import Index, read_index
from datamodules.policies import make_policy
from datamodules.shards import iter_episodes
from lit_wm.callbacks.progress import UpdateProgressBar
from lit_wm.cli.imitation_report import Result, draw_curve, show, write_json
from lit_wm.cli.train import OneLineParser, find_configs, without_advice
from lit_wm.cli.unknown_keys import config_files, file_of, refuse_unknown_empty_keys
from lit_wm.errors import UserError, check_bounds, check_choice
from lit_wm.evaluation.codes import majority_hits
from lit_wm.genie.imitation.agent import ImitationAgent, returns_of
from lit_wm.genie.imitation.dictionary import code_dictionary, draw_actions, labelled_steps
from lit_wm.genie.imitation.expert import Expert, Windows, label
from lit_wm.genie.imitation.learning import LearningSettings, learn
from lit_wm.genie.imitation.policy import ImitationPolicy, PolicySettings
from lit_wm.loading import LoadedRun, load_run

LABELS = [0, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000]
PRECISIONS = ("32-true", "bf16-mixed", "16-mixed")


def parser() -> OneLineParser:
    """The options of the verb; all but RUN may stand in a file given by ``--config``."""
    p = OneLineParser(prog="lit-wm imitate", description=__doc__)
    p.add_argument("-c", "--config", action=ActionConfigFile, help="a file with any of these options; later ones win")
    p.add_argument("run", type=str, help="run folder or .ckpt file of a model with codes")
    p.add_argument("--expert", type=str, required=True, help="recording of the expert; index.json says the environment")
    p.add_argument("--out", type=Path, default=Path("imitation"), help="folder for imitation.json and imitation.png")
    p.add_argument("--labels", type=int, nargs="+", default=LABELS, help="numbers of labelled steps: the curve's n")
    p.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4], help="of policies, labels and worlds")
    p.add_argument("--episodes", type=int, default=50, help="played for every number of every seed")
    p.add_argument("--policy", type=PolicySettings, default=PolicySettings(), help="sizes of the policy")
    p.add_argument("--learning", type=LearningSettings, default=LearningSettings(), help="how it learns")
    p.add_argument("--temperature", type=float, default=1.0, help="of the policies at play; 0 takes the likeliest")
    p.add_argument(
        "--oracle_random", type=float, default=0.1, help="share of the oracle's steps drawn uniformly (paper)"
    )
    p.add_argument("--most_steps", type=int, default=100_000, help="of the expert's train split that are read")
    p.add_argument("--precision", type=str, default="32-true", help=f"Lightning's: {', '.join(PRECISIONS)}")
    p.add_argument("--accelerator", type=str, default="cpu", help="cpu or gpu")
    return p


def parse(argv: list[str]) -> Namespace:
    """Parse and check the command line and its files.

    Raises:
        UserError: a key that nothing reads, or a value that cannot work.
    """
    argv = find_configs(argv)
    files, p = config_files(argv), parser()
    try:
        given = p.parse_args(argv)
    except UserError as error:
        raise UserError(
            f"imitate: {error}{file_of(str(error), files)}; lit-wm imitate --help shows the options"
        ) from error
    refuse_unknown_empty_keys(files, given)
    options = p.instantiate_classes(given)
    check_bounds("imitation", vars(options), {"episodes": 1, "temperature": 0, "oracle_random": 0, "most_steps": 2})
    for name in ("labels", "seeds"):
        numbers = getattr(options, name)
        if not numbers or min(numbers) < 0 or len(set(numbers)) < len(numbers):
            raise UserError(f"{name} of the imitation are {numbers}: give different numbers, none below 0")
    options.labels = sorted(options.labels)
    if options.oracle_random > 1:
        raise UserError(f"oracle_random of the imitation is {options.oracle_random}, it must be at most 1")
    check_choice("precision", options.precision, PRECISIONS)
    check_choice("accelerator", options.accelerator, ("cpu", "gpu"))
    if options.accelerator == "gpu" and not torch.cuda.is_available():
        raise UserError("accelerator is gpu, but PyTorch finds none here: give --accelerator cpu")
    options.learning.check()
    return options


def main(argv: list[str]) -> None:
    """Run the experiment, write its numbers and its curve, print them.

    Raises:
        UserError, ExperienceError: a run without codes, or an expert that cannot be imitated or judged.
    """
    options = parse(argv)
    without_advice()
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)  # which devices there are, for every policy anew
    warnings.filterwarnings("ignore", message=".*does not have many workers")  # the frames are in memory
    console = Console()
    run, index = load_run(options.run), read_index(options.expert)
    check_expert(index, run)
    check_labels(index, options.labels)
    train, val = (read_expert(run, index, split, options) for split in ("train", "val"))
    if options.labels[-1] > len(train.transitions):
        raise UserError(
            f"labels ask for {options.labels[-1]} labelled steps, but {len(train.transitions)} were read: raise most_steps"
        )
    options.out.mkdir(parents=True, exist_ok=True)
    result = Result(facts(options, run, index, train, val), options.seeds, {n: [] for n in options.labels})
    experiment = Experiment(options, index, train, val, result, console)
    for seed in options.seeds:
        experiment.one_seed(seed)
        write_json(result, options.out / "imitation.json")  # what is finished stays when the rest is stopped
    draw_curve(result, options.out / "imitation.png")
    show(result, console)
    console.print(f"{options.out / 'imitation.json'}, {options.out / 'imitation.png'}", highlight=False, soft_wrap=True)


def read_expert(run: LoadedRun, index: Index, split: str, options: Namespace) -> Expert | None:
    """A split of the recording with the codes of the run; None where no episode of it is as long as the policy needs."""
    lengths = [steps for shard in index.of(split) for _, steps in shard.episodes]
    if split != "train" and max(lengths, default=0) <= options.policy.frames:
        return None
    device = device_of(options)
    return label(run.model.to(device), iter_episodes(index.root, split), options.most_steps, device)


def check_expert(index: Index, run: LoadedRun) -> None:
    """Refuse a recording that RUN cannot label or whose imitation cannot be judged.

    Raises:
        UserError: other pictures, no actions, actions that are no classes, or an environment that cannot be built here.
    """
    spec, seen = index.spec, run.model.spec.observations.get("frames")
    shape = spec.observations.get("frames")
    if shape is None or shape != seen:
        sizes = ["no frames" if size is None else "x".join(map(str, size)) for size in (shape, seen)]
        raise UserError(f"the expert in {index.root} shows {sizes[0]}, but {run.name} was trained on {sizes[1]}")
    if spec.action.kind != "discrete":
        raise UserError(
            f"the actions in {index.root} are {spec.action.kind}: the oracle and the dictionary need discrete ones"
        )
    if spec.action.sizes[0] < 2:
        raise UserError(
            f"the expert in {index.root} comes without actions: there is nothing to label steps with and no oracle;"
            " record it in its environment"
        )
    environment = dict(index.environment)
    try:
        there = describe(environment.pop("id", ""), **environment)
    except ExperienceError as error:
        raise UserError(f"the expert in {index.root} is of an environment that cannot be built: {error}") from error
    if (there.observations, there.action) != (spec.observations, spec.action):
        raise UserError(f"the expert in {index.root} does not look like its environment does now: record it again")


def check_labels(index: Index, labels: list[int]) -> None:
    """Refuse more labelled steps than there are, before anything is computed.

    Raises:
        UserError: says how many there are.
    """
    most = sum(steps - 1 for shard in index.of("train") for _, steps in shard.episodes)
    if most < 1:
        raise UserError(f"{index.root} holds no train episodes: nothing can be learnt from it")
    if labels[-1] > most:
        raise UserError(f"labels ask for {labels[-1]} labelled steps, the train split of {index.root} has {most}")


@dataclass(frozen=True)
class Experiment:
    """What all seeds share."""

    options: Namespace
    index: Index
    train: Expert
    val: Expert | None
    result: Result
    console: Console

    def one_seed(self, seed: int) -> None:
        """Everything that a seed decides: two policies, the labelled steps, and the worlds in which all are judged."""
        options, spec, found = self.options, self.index.spec, self.result
        codes, actions = self.train.code.numpy(), self.train.action.numpy()
        policy, oracle = (self._learnt(what, seed) for what in ("codes", "actions"))
        rows = self.train.transitions
        order = labelled_steps(len(rows), options.labels[-1], seed)
        for n in options.labels:
            some = rows[order[:n]]
            dictionary = code_dictionary(codes[some], actions[some], spec.action.sizes[0])
            to_actions = functools.partial(draw_actions, dictionary)
            agent = ImitationAgent(policy, to_actions, seed, options.temperature)
            found.imitation[n].append(self._return(agent, seed))
        agent = ImitationAgent(oracle, lambda classes, _: classes, seed, options.temperature, options.oracle_random)
        found.baselines["oracle"].append(self._return(agent, seed))
        for name, player in (("expert", self.index.policy), ("random", "random")):
            try:
                agent = make_policy(player, self.index.environment["id"], spec, seed)
            except ExperienceError as error:  # recorded by an agent that has no name here
                found.reasons[name] = str(error)
            else:
                found.baselines[name].append(self._return(agent, seed))

    def _learnt(self, what: str, seed: int) -> ImitationPolicy:
        """The policy that learns the expert's ``codes``, or its ``actions``."""
        options, experts = self.options, [expert for expert in (self.train, self.val) if expert]
        if what == "codes":
            targets, classes = [expert.code for expert in experts], max(expert.codes for expert in experts)
        else:
            targets, classes = [expert.action for expert in experts], self.index.spec.action.sizes[0]
        length = options.policy.frames
        windows = Windows(self.train, targets[0], length)
        held_out = Windows(self.val, targets[1], length, stride=length) if self.val else None
        self.console.print(f"seed {seed}: a policy learns the expert's {what}", highlight=False)
        module, accuracy = learn(
            windows,
            held_out,
            classes,
            options.policy,
            options.learning,
            seed,
            options.out,
            f"{what}-{seed}",
            callbacks=[UpdateProgressBar()] if self.console.is_terminal else [],
            accelerator=options.accelerator,
            precision=options.precision,
        )
        if accuracy is not None:
            self.result.accuracy[what].append(accuracy)
        return module.to(device_of(options)).policy

    def _return(self, agent: Policy, seed: int) -> float:
        """Mean over the episodes of the worlds of this seed."""
        return float(returns_of(agent, self.index.environment, self.options.episodes, seed).mean())


def device_of(options: Namespace) -> str:
    """Where models are, outside a fit."""
    return "cuda" if options.accelerator == "gpu" else "cpu"


def facts(options: Namespace, run: LoadedRun, index: Index, train: Expert, val: Expert | None) -> dict[str, Any]:
    """What was compared, and how."""
    return {
        "run": run.name,
        "checkpoint": str(run.checkpoint),
        "run_updates": run.global_step,
        "run_seed": run.seed,
        "expert": str(index.root),
        "expert_hash": index.data_hash,
        "expert_policy": index.policy,
        "expert_steps": {"read": len(train.frames), "train_split": index.splits["train"]["steps"]},
        "environment": index.environment,
        "episodes": options.episodes,
        "policy": asdict(options.policy),
        "learning": asdict(options.learning),
        "temperature": options.temperature,
        "oracle_random": options.oracle_random,
        "precision": options.precision,
        "codes_that_occur": len(train.code[train.transitions].unique()),
        "codes_majority_accuracy": majority_accuracy(train, val) if val else None,
    }


def majority_accuracy(train: Expert, val: Expert) -> float:
    """Share of held-out steps whose action is the one that their code most often goes with in training: what a policy that
    gets every code right could reach by the best single action for each code, with all labels at hand."""
    a, b = ((e.code.numpy()[e.transitions], e.action.numpy()[e.transitions]) for e in (train, val))
    return float(majority_hits(*a, *b).mean())
