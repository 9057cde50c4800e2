"""DreamerPolicy: the agent at play. It filters what it sees with the posterior and samples the actor, as in training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from datamodules.experience import ActionSpace
from lit_wm.dreamer.rssm import feature

if TYPE_CHECKING:
    from lit_wm.dreamer.module import DreamerModule

Memory = dict[str, Any]


class DreamerPolicy:
    """Answers :class:`datamodules.experience.Policy`; evaluation samples too, as the reference does.

    Args:
        model: whose weights are looked at anew in every step.
        seed: of latents and actions.

    Attributes:
        latents: what :meth:`act` returns beside the actions, key -> (shape, dtype): ``deter``, and ``stoch`` packed.
    """

    def __init__(self, model: DreamerModule, seed: int) -> None:
        self.model, self.seed = model, seed
        self.latents = {"deter": ((model.rssm.size.deter,), np.dtype(np.float32)), "stoch": model.rssm.latents.stored}

    def initial_state(self, n: int) -> Memory:
        """Zero states and actions of ``n`` environments, and the state of the random numbers."""
        deter, stoch = self.model.rssm.initial(n, self._like)
        action = self._like.new_zeros(n, self.model.spec.action.width)
        random = torch.Generator(self._like.device).manual_seed(self.seed).get_state()
        return {"deter": deter, "stoch": stoch, "action": action, "random": random}

    @property
    def _like(self) -> Tensor:
        return self.model.actor.out.weight

    @torch.no_grad()
    def act(
        self, observation: Mapping[str, np.ndarray], is_first: np.ndarray, state: Memory
    ) -> tuple[np.ndarray, Memory, dict[str, np.ndarray]]:
        """One step in every environment; continuous actions are clipped to [-1, 1], which the RSSM does to them anyway."""
        model, device = self.model, self._like.device
        generator = torch.Generator(device)
        random = torch.as_tensor(state["random"])
        if random.shape == generator.get_state().shape:
            generator.set_state(random)
        else:  # the checkpoint is of another kind of device, whose random numbers cannot be gone on with
            generator.manual_seed(self.seed)
        deter, stoch, action = (torch.as_tensor(state[key]).to(self._like) for key in ("deter", "stoch", "action"))
        spec = model.spec
        batch = {key: torch.as_tensor(observation[key], device=device).unsqueeze(1) for key in spec.observations}
        for key in spec.pictures:
            batch[key] = batch[key].permute(0, 1, 4, 2, 3)
        for key in spec.vectors:
            batch[key] = batch[key].to(self._like.dtype)
        first = torch.as_tensor(is_first, device=device).unsqueeze(1)
        post = model.rssm.observe(model.encoder(batch), action.unsqueeze(1), first, (deter, stoch), generator=generator)
        deter, stoch = post.deter[:, 0], post.stoch[:, 0]
        action = model.actor.sample(model.actor(feature(deter, stoch)), generator)
        memory = {"deter": deter, "stoch": stoch, "action": action, "random": generator.get_state()}
        extras = {"deter": deter.float().cpu().numpy(), "stoch": model.rssm.latents.pack(stoch).cpu().numpy()}
        return environment_actions(action, spec.action), memory, extras


def environment_actions(action: Tensor, space: ActionSpace) -> np.ndarray:
    """Action vectors (N,A) as an environment takes them: the inverse of ``datamodules.experience.action_vectors``."""
    if space.kind == "continuous":
        return action.clamp(-1, 1).float().cpu().numpy()
    classes = torch.stack([part.argmax(-1) for part in action.split(space.sizes, -1)], -1)
    return (classes[:, 0] if space.kind == "discrete" else classes).cpu().numpy()
