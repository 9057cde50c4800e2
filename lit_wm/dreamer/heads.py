"""Heads on concat(deter, stoch): reward and value (symexp twohot, or mean squared error), continue, and the actor."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from datamodules.experience import ActionSpace
from lit_wm.dreamer.distributions import TWOHOT_BINS, gumbel, twohot_bins, twohot_cross_entropy, twohot_mean
from lit_wm.dreamer.layers import MLP, linear
from lit_wm.dreamer.sizes import Size


class TwohotHead(nn.Module):
    """Regression as classification over 255 symexp bins; starts by predicting exactly 0."""

    def __init__(self, size: Size, layers: int) -> None:
        super().__init__()
        self.mlp = MLP(size.feature, size.units, layers)
        self.out = linear(size.units, TWOHOT_BINS, scale=0.0)
        self.register_buffer("bins", twohot_bins(), persistent=False)

    def forward(self, feature: Tensor) -> Tensor:
        """(..., F) -> (..., 255) logits."""
        return self.finish(self.mlp(feature))

    def finish(self, hidden: Tensor) -> Tensor:
        """The last layer, (..., U) -> (..., 255)."""
        logits = self.out(hidden)
        return logits.to(torch.promote_types(logits.dtype, torch.float32))

    def mean(self, logits: Tensor) -> Tensor:
        """(..., 255) logits -> (...,) expected value."""
        return twohot_mean(logits, self.bins)

    def loss(self, logits: Tensor, target: Tensor) -> Tensor:
        """(...,) cross-entropy against the twohot target."""
        return twohot_cross_entropy(logits, target, self.bins)


class SquaredErrorHead(nn.Module):
    """Regression by squared error, for the ablation of the twohot distribution; starts by predicting exactly 0, too."""

    def __init__(self, size: Size, layers: int) -> None:
        super().__init__()
        self.mlp = MLP(size.feature, size.units, layers)
        self.out = linear(size.units, 1, scale=0.0)

    def forward(self, feature: Tensor) -> Tensor:
        """(..., F) -> (..., 1) prediction."""
        return self.finish(self.mlp(feature))

    def finish(self, hidden: Tensor) -> Tensor:
        """The last layer, (..., U) -> (..., 1)."""
        prediction = self.out(hidden)
        return prediction.to(torch.promote_types(prediction.dtype, torch.float32))

    def mean(self, prediction: Tensor) -> Tensor:
        """(..., 1) -> (...,)."""
        return prediction.squeeze(-1)

    def loss(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Squared error, of the target's shape: (...,), or (..., K) for several. No gradient is taken through it."""
        several = target.detach().view(*prediction.shape[:-1], -1)
        return (prediction - several).square().view(target.shape)


REGRESSION = {"twohot": TwohotHead, "mse": SquaredErrorHead}
RegressionHead = TwohotHead | SquaredErrorHead


class ContinueHead(nn.Module):
    """Probability that the episode goes on; its soft target already holds the discount."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.mlp = MLP(size.feature, size.units, 1)
        self.out = linear(size.units, 1)

    def forward(self, feature: Tensor) -> Tensor:
        """(..., F) -> (...,) logit."""
        return self.finish(self.mlp(feature))

    def finish(self, hidden: Tensor) -> Tensor:
        """The last layer, (..., U) -> (...,)."""
        logit = self.out(hidden).squeeze(-1)
        return logit.to(torch.promote_types(logit.dtype, torch.float32))


class Actor(nn.Module):
    """pi(a | state): categorical per discrete action, a squashed-mean normal per continuous one."""

    def __init__(self, size: Size, space: ActionSpace) -> None:
        super().__init__()
        self.space = space
        self.mlp = MLP(size.feature, size.units, 3)
        self.out = linear(size.units, space.width, scale=0.01)
        if space.kind == "continuous":
            self.out_std = linear(size.units, space.width, scale=0.01)

    def forward(self, feature: Tensor) -> Tensor:
        """(..., F) -> (..., A) logits, or (..., 2A) mean and standard deviation."""
        hidden = self.mlp(feature)
        mean = self.out(hidden)
        mean = mean.to(torch.promote_types(mean.dtype, torch.float32))
        if self.space.kind != "continuous":
            return mean
        std = 0.9 * torch.sigmoid(self.out_std(hidden).to(mean.dtype) + 2) + 0.1
        return torch.cat([torch.tanh(mean), std], -1)

    def sample(self, parameters: Tensor, generator: torch.Generator | None = None, mode: bool = False) -> Tensor:
        """An action vector (..., A): one-hot classes, or an unclipped normal sample. No gradient."""
        parameters = parameters.detach()
        if self.space.kind == "continuous":
            mean, std = parameters.chunk(2, -1)
            if mode:
                return mean
            noise = torch.empty_like(mean).normal_(generator=generator)
            return mean + std * noise
        noisy = parameters if mode else parameters + gumbel(tuple(parameters.shape), parameters, generator)
        parts = noisy.split(self.space.sizes, -1)
        return torch.cat([F.one_hot(x.argmax(-1), x.shape[-1]).to(x.dtype) for x in parts], -1)

    def log_prob_and_entropy(self, parameters: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        """(...,) log pi(action) and entropy, summed over the entries of the action."""
        if self.space.kind == "continuous":
            law = torch.distributions.Normal(*parameters.chunk(2, -1), validate_args=False)
            return law.log_prob(action.detach()).sum(-1), law.entropy().sum(-1)
        log_prob, entropy = 0, 0
        for x, a in zip(parameters.split(self.space.sizes, -1), action.split(self.space.sizes, -1), strict=True):
            log_p = x.log_softmax(-1)
            log_prob = log_prob + (log_p * a).sum(-1)
            entropy = entropy - (log_p.exp() * log_p).sum(-1)
        return log_prob, entropy
