"""The recurrent state-space model with block-diagonal GRU (DreamerV3, section "World model").

    deter_t = f(deter_{t-1}, stoch_{t-1}, a_{t-1})
    prior       stoch_t ~ p(. | deter_t)
    posterior   stoch_t ~ q(. | deter_t, x_t)

Everything that does not depend on the recurrent state is computed outside the time loop, for all steps at once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lit_wm.dreamer.latents import Latents
from lit_wm.dreamer.layers import MLP, BlockLinear, NormSiLU, linear
from lit_wm.dreamer.sizes import BLOCKS, Size


@dataclass
class Posterior:
    """What filtering a clip gives.

    Attributes:
        deter: (B,T,D).
        stoch: (B,T,S,C) samples of the posterior, with gradient.
        q, p: (B,T,S,P) posterior and prior laws; see :class:`lit_wm.dreamer.latents.Latents`.
    """

    deter: Tensor
    stoch: Tensor
    q: Tensor
    p: Tensor


class RSSM(nn.Module):
    """Recurrent state-space model.

    Args:
        size: widths.
        action: width A of an action vector.
        tokens: width E of the encoder's output.
        latents: the law of the stochastic state.

    Attributes:
        compiled: whether the recurrence runs compiled; the same to rounding.
    """

    def __init__(self, size: Size, action: int, tokens: int, latents: Latents) -> None:
        super().__init__()
        self.size, self.latents, self.compiled = size, latents, False
        d, h, z = size.deter, size.hidden, size.stoch * size.classes
        self.in_deter, self.in_deter_norm = linear(d, h), NormSiLU(h)
        self.in_stoch, self.in_stoch_norm = linear(z, h), NormSiLU(h)
        self.in_action, self.in_action_norm = linear(action, h), NormSiLU(h)
        self.hidden, self.hidden_norm = BlockLinear(d + 3 * h * BLOCKS, d, BLOCKS), NormSiLU(d)
        self.gates = BlockLinear(d, 3 * d, BLOCKS)
        self.prior = nn.Sequential(MLP(d, h, 2), linear(h, latents.outputs))
        self.posterior_in, self.posterior_norm = linear(d + tokens, h), NormSiLU(h)
        self.posterior_out = linear(h, latents.outputs)

    def initial(self, batch: int, like: Tensor) -> tuple[Tensor, Tensor]:
        """The zero state: deter (B,D) and stoch (B,S,C)."""
        return like.new_zeros(batch, self.size.deter), like.new_zeros(batch, self.size.stoch, self.size.classes)

    def embed_actions(self, actions: Tensor) -> Tensor:
        """(..., A) action vectors -> (..., H): the action's branch of the core, hoisted out of the time loop.

        Actions beyond [-1, 1] are divided by their size, the divisor without gradient.
        """
        actions = actions / actions.detach().abs().clamp_min(1)
        return self.in_action_norm(self.in_action(actions))

    def hidden_weights(self) -> tuple[Tensor, Tensor]:
        """The hidden layer's weight in two: (blocks, D/blocks, D/blocks) for a block's own part of deter, and (3H,D) for the
        three branches. These are the same for every block, so their part of the block-diagonal map is one dense product.
        """
        own, shared = self.hidden.weight.tensor_split([self.size.deter // BLOCKS], 1)
        return own, shared.transpose(0, 1).reshape(-1, self.size.deter)

    def core(
        self, deter: Tensor, stoch: Tensor, action_nh: Tensor, weights: tuple[Tensor, Tensor] | None = None
    ) -> Tensor:
        """One step of the recurrence: (N,D), (N,S,C), (N,H) from :meth:`embed_actions` -> the next deter (N,D).

        ``weights`` are :meth:`hidden_weights`, where a loop has made them once for all its steps.
        """
        step = compiled_recurrence() if self.compiled else RSSM.recurrence
        return step(self, deter, stoch, action_nh, *(weights or self.hidden_weights()))

    def recurrence(self, deter: Tensor, stoch: Tensor, action_nh: Tensor, own: Tensor, shared: Tensor) -> Tensor:
        """What :meth:`core` computes: the one part that runs in every step, and that ``compiled`` compiles."""
        n, d = deter.shape
        width = d // BLOCKS
        branches = torch.cat(
            [self.in_deter_norm(self.in_deter(deter)), self.in_stoch_norm(self.in_stoch(stoch.flatten(1))), action_nh],
            1,
        )
        x = torch.addmm(self.hidden.bias, branches, shared)
        x_gnw, deter_gnw = (y.view(n, BLOCKS, width).transpose(0, 1) for y in (x, deter))
        x = torch.baddbmm(x_gnw, deter_gnw, own).transpose(0, 1).reshape(n, d)
        gates = self.gates.blocks(self.hidden_norm(x)).view(BLOCKS, n, 3, width)  # split inside every block
        reset, candidate, update = gates.permute(2, 1, 0, 3).reshape(3, n, d).to(deter.dtype)
        candidate = 2 * torch.sigmoid(2 * torch.sigmoid(reset) * candidate) - 1  # tanh, which is 6 times as slow on CPU
        return torch.lerp(deter, candidate, torch.sigmoid(update - 1))

    def observe(
        self,
        tokens: Tensor,
        actions: Tensor,
        is_first: Tensor,
        carry: tuple[Tensor, Tensor] | None = None,
        sample: bool = True,
        generator: torch.Generator | None = None,
    ) -> Posterior:
        """Filter a clip.

        Args:
            tokens: (B,T,E) from the encoder.
            actions: (B,T,A) **previous** actions: entry t led to frame t.
            is_first: (B,T) bool; state and previous action are wiped there.
            carry: deter (B,D) and stoch (B,S,C) before the first step; the zero state by default.
            sample: draw the latents; False takes their modes.
            generator: the source of randomness.
        """
        batch, steps = is_first.shape
        deter, stoch = self.initial(batch, self.hidden.bias) if carry is None else carry
        keep = (~is_first).to(tokens.dtype).unsqueeze(-1)
        actions_bth = self.embed_actions(actions * keep)
        d = self.size.deter
        weights, from_deter = self.hidden_weights(), self.posterior_in.weight[:, :d].T
        from_tokens = F.linear(tokens, self.posterior_in.weight[:, d:], self.posterior_in.bias)
        noise = [None] * steps
        if sample:
            noise = self.latents.noise((steps, batch), deter, generator)
        deters, stochs, laws = [], [], []
        # one unbind: indexing [:, t] would have every step's backward clear and add a gradient of all steps
        per_step = zip(keep.unbind(1), actions_bth.unbind(1), from_tokens.unbind(1), noise, strict=True)
        for k, action, token, noise_t in per_step:
            deter = self.core(deter * k, stoch * k.unsqueeze(-1), action, weights)
            hidden = self.posterior_norm(torch.addmm(token, deter, from_deter))
            q = self.latents.law(self.posterior_out(hidden))
            stoch = self.latents.sample(q, noise_t).to(deter.dtype)
            deters.append(deter), stochs.append(stoch), laws.append(q)
        deter_btd = torch.stack(deters, 1)
        p = self.latents.law(self.prior(deter_btd))
        return Posterior(deter_btd, torch.stack(stochs, 1), torch.stack(laws, 1), p)

    def imagine_step(
        self,
        deter: Tensor,
        stoch: Tensor,
        action: Tensor,
        temperature: float = 1.0,
        generator: torch.Generator | None = None,
        weights: tuple[Tensor, Tensor] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """One step of the prior: (N,D), (N,S,C) and the action vector (N,A) -> the next state. Temperature 0: the mode.

        ``weights`` as for :meth:`core`.
        """
        deter = self.core(deter, stoch, self.embed_actions(action), weights)
        p = self.latents.law(self.prior(deter))
        if temperature == 0:
            return deter, self.latents.sample(p, None).to(deter.dtype)
        if temperature != 1:
            p = self.latents.tempered(p, temperature)
        return deter, self.latents.sample(p, self.latents.noise((len(p),), p, generator)).to(deter.dtype)


@cache
def compiled_recurrence() -> Callable[..., Tensor]:
    """Of the class, not of one object: a copy of a model would go on with the weights of the original."""
    return torch.compile(RSSM.recurrence, dynamic=False)


def feature(deter: Tensor, stoch: Tensor) -> Tensor:
    """concat(deter, flat stoch): what every head reads."""
    return torch.cat([deter, stoch.flatten(-2)], -1)
