"""The recurrent state-space model with block-diagonal GRU and categorical latents (DreamerV3, section "World model").

    deter_t = f(deter_{t-1}, stoch_{t-1}, a_{t-1})
    prior       stoch_t ~ p(. | deter_t)
    posterior   stoch_t ~ q(. | deter_t, x_t)

Everything that does not depend on the recurrent state is computed outside the time loop, for all steps at once.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lit_wm.dreamer.distributions import gumbel, sample_one_hot, unimix_log_probs
from lit_wm.dreamer.layers import MLP, BlockLinear, NormSiLU, linear
from lit_wm.dreamer.sizes import BLOCKS, Size


@dataclass
class Posterior:
    """What filtering a clip gives.

    Attributes:
        deter: (B,T,D).
        stoch: (B,T,S,C) one-hot with straight-through gradient.
        log_q, log_p: (B,T,S,C) posterior and prior log-probabilities, unimix applied.
    """

    deter: Tensor
    stoch: Tensor
    log_q: Tensor
    log_p: Tensor


class RSSM(nn.Module):
    """Recurrent state-space model.

    Args:
        size: widths.
        action: width A of an action vector.
        tokens: width E of the encoder's output.
    """

    def __init__(self, size: Size, action: int, tokens: int) -> None:
        super().__init__()
        self.size = size
        d, h, z = size.deter, size.hidden, size.stoch * size.classes
        self.in_deter, self.in_deter_norm = linear(d, h), NormSiLU(h)
        self.in_stoch, self.in_stoch_norm = linear(z, h), NormSiLU(h)
        self.in_action, self.in_action_norm = linear(action, h), NormSiLU(h)
        self.hidden, self.hidden_norm = BlockLinear(d + 3 * h * BLOCKS, d, BLOCKS), NormSiLU(d)
        self.gates = BlockLinear(d, 3 * d, BLOCKS)
        self.prior = nn.Sequential(MLP(d, h, 2), linear(h, z))
        self.posterior_in, self.posterior_norm, self.posterior_out = linear(d + tokens, h), NormSiLU(h), linear(h, z)

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
        own, shared = weights or self.hidden_weights()
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

    def latents(self, logits: Tensor) -> Tensor:
        """(..., S*C) logits -> (..., S,C) log-probabilities with unimix, in float32 at least."""
        wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
        return unimix_log_probs(wide.unflatten(-1, (self.size.stoch, self.size.classes)))

    def observe(
        self,
        tokens: Tensor,
        actions: Tensor,
        is_first: Tensor,
        carry: tuple[Tensor, Tensor] | None = None,
        sample: bool = True,
    ) -> Posterior:
        """Filter a clip.

        Args:
            tokens: (B,T,E) from the encoder.
            actions: (B,T,A) **previous** actions: entry t led to frame t.
            is_first: (B,T) bool; state and previous action are wiped there.
            carry: deter (B,D) and stoch (B,S,C) before the first step; the zero state by default.
            sample: draw the latents; False takes their modes.
        """
        batch, steps = is_first.shape
        deter, stoch = self.initial(batch, tokens) if carry is None else carry
        keep = (~is_first).to(tokens.dtype).unsqueeze(-1)
        actions_bth = self.embed_actions(actions * keep)
        d = self.size.deter
        weights, from_deter = self.hidden_weights(), self.posterior_in.weight[:, :d].T
        from_tokens = F.linear(tokens, self.posterior_in.weight[:, d:], self.posterior_in.bias)
        noise = None
        if sample:
            shape = (steps, batch, self.size.stoch, self.size.classes)
            noise = gumbel(shape, tokens.to(torch.promote_types(tokens.dtype, torch.float32)))
        deters, stochs, log_qs = [], [], []
        # one unbind: indexing [:, t] would have every step's backward clear and add a gradient of all steps
        per_step = zip(keep.unbind(1), actions_bth.unbind(1), from_tokens.unbind(1), strict=True)
        for t, (k, action, token) in enumerate(per_step):
            deter = self.core(deter * k, stoch * k.unsqueeze(-1), action, weights)
            hidden = self.posterior_norm(torch.addmm(token, deter, from_deter))
            log_q = self.latents(self.posterior_out(hidden))
            stoch = sample_one_hot(log_q, None if noise is None else noise[t]).to(tokens.dtype)
            deters.append(deter), stochs.append(stoch), log_qs.append(log_q)
        deter_btd = torch.stack(deters, 1)
        log_p = self.latents(self.prior(deter_btd))
        return Posterior(deter_btd, torch.stack(stochs, 1), torch.stack(log_qs, 1), log_p)

    def imagine_step(
        self,
        deter: Tensor,
        stoch: Tensor,
        action: Tensor,
        temperature: float = 1.0,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, Tensor]:
        """One step of the prior: (N,D), (N,S,C) and the action vector (N,A) -> the next state. Temperature 0: the mode."""
        deter = self.core(deter, stoch, self.embed_actions(action))
        log_p = self.latents(self.prior(deter))
        if temperature == 0:
            return deter, sample_one_hot(log_p, None).to(deter.dtype)
        if temperature != 1:
            log_p = (log_p / temperature).log_softmax(-1)
        return deter, sample_one_hot(log_p, gumbel(tuple(log_p.shape), log_p, generator)).to(deter.dtype)


def feature(deter: Tensor, stoch: Tensor) -> Tensor:
    """concat(deter, flat stoch): what every head reads."""
    return torch.cat([deter, stoch.flatten(-2)], -1)
