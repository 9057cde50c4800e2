"""What ``lit-wm bench`` measures: a route's model at the asked sizes, and a batch of noise in the data contract."""

from __future__ import annotations

import argparse
from typing import Any, NamedTuple

import torch
from lightning import LightningModule
from torch import Tensor, nn

from lit_wm.contract import Batch
from lit_wm.errors import UserError
from lit_wm.world_model import WorldModel

ACTIONS = 6


class Subject(NamedTuple):
    """What is measured."""

    name: str
    model: LightningModule
    batch: Batch
    part: nn.Module  # whose parameters learn in the step

    @property
    def parameters(self) -> int:
        """How many numbers learn."""
        return sum(p.numel() for p in self.part.parameters() if p.requires_grad)


def build_subject(options: argparse.Namespace) -> Subject:
    """The route that was asked for."""
    return BUILDERS[options.route](options)


def experience(vector: bool = False) -> dict[str, Any]:
    """The description of the benchmark's data: 64x64 colour frames (or 24 numbers) and 6 discrete actions."""
    observations = {"vector": [24]} if vector else {"frames": [64, 64, 3]}
    return {
        "observations": observations,
        "action": {"kind": "discrete", "sizes": [ACTIONS], "names": []},
        "factors": [],
    }


def random_batch(size: int, length: int, vector: bool = False) -> Batch:
    """One clip batch of the data contract, filled with noise."""
    batch = {key: torch.zeros(size, length, dtype=torch.bool) for key in ("is_first", "is_last", "is_terminal")}
    batch["action"] = torch.randint(0, ACTIONS, (size, length))
    batch["reward"] = torch.randn(size, length)
    if vector:
        batch["vector"] = torch.randn(size, length, 24)
    else:
        batch["frames"] = torch.randint(0, 256, (size, length, 3, 64, 64), dtype=torch.uint8)
    return batch


def build(module: type[WorldModel], options: argparse.Namespace, **defaults: Any) -> WorldModel:
    """A route's model with the benchmark's defaults, overridden by ``--set``, which is checked as ``lit-wm fit`` checks.

    Raises:
        UserError: a key that the model does not have, or a value that it cannot take.
    """
    from jsonargparse import ArgumentError, ArgumentParser

    from lit_wm.cli.unknown_keys import nearest

    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(module, skip={"experience"})
    parser.set_defaults(defaults)
    try:
        given = parser.instantiate_classes(parser.parse_args([f"--{word}" for word in options.set]))
    except ArgumentError as error:
        said = str(error).replace("unrecognized arguments: --", "nothing reads ")
        raise UserError(f"bench {options.route}: --set: {said}{nearest(str(error), parser)}") from error
    return module(experience(getattr(options, "observation", "image") == "vector"), **vars(given))


def build_dreamer(options: argparse.Namespace) -> Subject:
    """A full update: world model, actor and critic."""
    from lit_wm.dreamer import DreamerModule

    model = build(DreamerModule, options, size=options.size)
    batch = random_batch(options.batch, options.length, options.observation == "vector")
    return Subject(named(f"dreamer {model.hparams.size} {options.observation}", options), model, batch, model)


def build_genie(options: argparse.Namespace) -> Subject:
    """One part's step, at a small size unless ``--set`` asks for another."""
    from lit_wm.genie import GenieModule

    width = {"dim": 128, "heads": 4, "ffn": 512}
    coder = {**width, "encoder_blocks": 4, "decoder_blocks": 4}
    parts = {"tokenizer": {**coder, "patch": 8}, "lam": {**coder, "patch": 16}, "dynamics": {**width, "blocks": 4}}
    model = build(
        GenieModule,
        options,
        frames=options.length,
        order=options.part if options.part in ("tokenizer", "latent_action") else "staged",
        tokenizer_steps=0,  # staged from update 0: the latent actions and the dynamics
        **{f"{part}.{key}": value for part, sizes in parts.items() for key, value in sizes.items()},
    )
    batch, name = random_batch(options.batch, options.length), named(f"genie {options.part}", options)
    if options.part == "dynamics":
        return Subject(name, DynamicsAlone(model), DynamicsAlone.random_batch(model, options), model.dynamics)
    part = {"tokenizer": model.tokenizer, "latent_action": model.lam, "sample": model}.get(options.part)
    return Subject(name, model, batch, nn.ModuleList([model.lam, model.dynamics]) if part is None else part)


class DynamicsAlone(LightningModule):
    """The dynamics' own training step, as public implementations report it: tokens and latent actions come ready.

    Args:
        genie: whose dynamics and optimizer.
    """

    def __init__(self, genie: Any) -> None:
        super().__init__()
        self.dynamics = genie.dynamics
        self.adamw = {
            "lr": genie.optimizers_of["dynamics"].lr,
            "betas": genie.betas,
            "weight_decay": genie.weight_decay,
        }

    @staticmethod
    def random_batch(genie: Any, options: argparse.Namespace) -> Batch:
        """Tokens (B,T,N) and actions (B,T-1,A) without meaning."""
        b, t, s = options.batch, options.length, genie.lam.settings
        tokens = torch.randint(0, genie.tokenizer.settings.codes, (b, t, genie.tokenizer.tokens))
        return {"tokens": tokens, "actions": torch.randn(b, t - 1, s.latent_dim)}

    def training_step(self, batch: Batch, index: int) -> Tensor:
        return self.dynamics.loss(batch["tokens"], batch["actions"])[0].mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), **self.adamw)


def build_jepa(options: argparse.Namespace) -> Subject:
    """A step of encoder, predictor and target, at the model's default size unless ``--set`` asks for another."""
    from lit_wm.jepa import JEPAModule

    model = build(JEPAModule, options, actions=not options.action_free)
    kind = "with actions" if model.hparams.actions else "action-free"
    return Subject(named(f"jepa {kind}", options), model, random_batch(options.batch, options.length), model)


def named(kind: str, options: argparse.Namespace) -> str:
    """The title of a result: everything that changes what was measured."""
    return " ".join([kind, f"{options.batch}x{options.length}", *options.set])


BUILDERS = {
    "dreamer": build_dreamer,
    "genie": build_genie,
    "jepa": build_jepa,
}
