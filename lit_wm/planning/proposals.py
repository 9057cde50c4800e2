"""Laws over action sequences that a planner draws from and refits: Gaussian for continuous actions, categorical for discrete ones.

Everything is batched over B problems; a sequence has H steps of A numbers (discrete: one-hot vectors of A classes).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lit_wm.errors import UserError


@dataclass(frozen=True)
class Gaussian:
    """Independent normals, cut at the bounds.

    Args:
        mean_bha: (B,H,A).
        std_bha: (B,H,A).
        low, high: bounds of every action, numbers or (A,); None: none.
        colour: exponent of the noise's power law over time, 0 white (CEM), 2 red (iCEM, Pinneri et al. 2020, section 3.1).
        fixed_std: refitting moves the mean alone (MPPI).
    """

    mean_bha: Tensor
    std_bha: Tensor
    low: Tensor | float | None = None
    high: Tensor | float | None = None
    colour: float = 0.0
    fixed_std: bool = False

    def draw(self, samples: int, generator: torch.Generator | None = None) -> Tensor:
        """(B,N,H,A) sequences."""
        b, h, a = self.mean_bha.shape
        noise_bnah = torch.randn(b, samples, a, h, generator=generator, dtype=self.mean_bha.dtype).to(
            self.mean_bha.device
        )
        return self.shaped(coloured(noise_bnah, self.colour).transpose(-1, -2))

    def shaped(self, noise_bnha: Tensor) -> Tensor:
        """Standard normal noise to sequences of this law."""
        return self.within(self.mean_bha.unsqueeze(1) + self.std_bha.unsqueeze(1) * noise_bnha)

    def within(self, actions: Tensor) -> Tensor:
        """Cut at the bounds."""
        if self.low is None and self.high is None:
            return actions
        low, high = (x if x is None else torch.as_tensor(x).to(actions) for x in (self.low, self.high))
        return actions.clamp(low, high)

    def best(self) -> Tensor:
        """(B,H,A): the mean."""
        return self.mean_bha

    def refitted(self, actions_bnha: Tensor, weight_bn: Tensor) -> Gaussian:
        """The law of weighted samples; weights of a problem sum to 1. The variance is unbiased for equal weights."""
        w_bn11 = weight_bn[..., None, None]
        mean_bha = self.within((w_bn11 * actions_bnha).sum(1))  # weights sum to 1 but for rounding
        if self.fixed_std:
            return replace(self, mean_bha=mean_bha)
        freedom_b11 = 1 - weight_bn.square().sum(1)[:, None, None]
        squares_bha = (w_bn11 * (actions_bnha - mean_bha.unsqueeze(1)).square()).sum(1)
        return replace(self, mean_bha=mean_bha, std_bha=(squares_bha / freedom_b11.clamp_min(1e-12)).sqrt())

    def mixed(self, before: Gaussian, mean: Tensor | float, std: Tensor | float) -> Gaussian:
        """Keep shares of the earlier mean and standard deviation (numbers, or one for each of the A)."""
        return replace(
            self,
            mean_bha=(1 - mean) * self.mean_bha + mean * before.mean_bha,
            std_bha=(1 - std) * self.std_bha + std * before.std_bha,
        )


@dataclass(frozen=True)
class Categorical:
    """One class in every step.

    Args:
        law_bhk: (B,H,K) probabilities.
        least: no class becomes less likely than this share of the uniform law, so that none is lost for good.
        stick: probability that a drawn sequence does again what it did in the step before: what coloured noise is to
            continuous actions. 0: steps are independent.
    """

    law_bhk: Tensor
    least: float = 0.05
    stick: float = 0.0

    def draw(self, samples: int, generator: torch.Generator | None = None) -> Tensor:
        """(B,N,H,K) one-hot vectors."""
        b, h, k = self.law_bhk.shape
        law = self.law_bhk.reshape(-1, k).cpu()
        classes = torch.multinomial(law, samples, replacement=True, generator=generator).view(b, h, samples)
        if self.stick:
            again = torch.rand(b, h, samples, generator=generator) < self.stick
            again[:, 0] = False
            since = torch.where(again, 0, torch.arange(h)[:, None]).cummax(1).values  # when what is done was begun
            classes = classes.gather(1, since)
        one_hot = torch.nn.functional.one_hot(classes.transpose(1, 2), k)
        return one_hot.to(self.law_bhk)

    def best(self) -> Tensor:
        """(B,H,K): the likeliest class of every step."""
        k = self.law_bhk.shape[-1]
        return torch.nn.functional.one_hot(self.law_bhk.argmax(-1), k).to(self.law_bhk)

    def refitted(self, actions_bnhk: Tensor, weight_bn: Tensor) -> Categorical:
        """The weighted frequencies."""
        law = (weight_bn[..., None, None] * actions_bnhk).sum(1)
        return replace(self, law_bhk=(1 - self.least) * law + self.least / law.shape[-1])

    def mixed(self, before: Categorical, mean: Tensor | float, std: Tensor | float) -> Categorical:
        """Keep a share of the earlier probabilities; a law of classes has no separate spread."""
        return replace(self, law_bhk=(1 - mean) * self.law_bhk + mean * before.law_bhk)


Proposal = Gaussian | Categorical


def coloured(white_h: Tensor, exponent: float) -> Tensor:
    """White noise (..., H) whose power falls as 1 / frequency^exponent; each entry keeps variance 1.

    Raises:
        UserError: a negative exponent.
    """
    if exponent < 0:
        raise UserError(f"colour of the planner's noise is {exponent}, it must be at least 0")
    steps = white_h.shape[-1]
    if exponent == 0 or steps == 1:
        return white_h
    frequency = torch.fft.rfftfreq(steps, device=white_h.device, dtype=white_h.dtype)
    frequency[0] = frequency[1]  # the mean is as strong as the slowest wave
    gain = frequency ** (-exponent / 2)
    count = torch.full_like(gain, 2.0)  # a real series holds every frequency twice, but for the mean and the fastest
    count[0] = 1.0
    if steps % 2 == 0:
        count[-1] = 1.0
    scale = (gain.square() * count).sum().div(steps).sqrt()
    return torch.fft.irfft(torch.fft.rfft(white_h) * gain, n=steps) / scale
