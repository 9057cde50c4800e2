"""LaProp with adaptive gradient clipping: DreamerV3's optimizer."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer


class LaProp(Optimizer):
    """Adaptive gradient clipping, then RMS scaling, then momentum (Ziyin et al. 2020; Brock et al. 2021).

        g <- g min(1, clip max(min_norm, |p|) / |g|)         per tensor
        v <- b2 v + (1 - b2) g^2,   u = g / (sqrt(v / (1 - b2^t)) + eps)
        m <- b1 m + (1 - b1) u,     p <- p - lr m / (1 - b1^t)

    Args:
        params: parameters.
        lr: learning rate (DreamerV3: 4e-5).
        betas: momentum and second-moment decay.
        eps: added to the root of the second moment.
        clip: adaptive clipping factor; 0 switches it off.
        min_norm: smallest parameter norm that clipping assumes.
    """

    def __init__(
        self,
        params: Iterable[Tensor],
        lr: float = 4e-5,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-20,
        clip: float = 0.3,
        min_norm: float = 1e-3,
    ) -> None:
        defaults = {"lr": lr, "betas": betas, "eps": eps, "clip": clip, "min_norm": min_norm, "step": 0}
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update; parameters without gradient are left alone."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            if not params:
                continue
            for p in params:
                if "momentum" not in self.state[p]:
                    self.state[p].update(momentum=torch.zeros_like(p), square=torch.zeros_like(p))
            self._update(group, params)
        return loss

    def _update(self, group: dict[str, Any], params: list[Tensor]) -> None:
        group["step"] += 1
        b1, b2 = group["betas"]
        grads = [p.grad for p in params]
        momenta = [self.state[p]["momentum"] for p in params]
        squares = [self.state[p]["square"] for p in params]
        if group["clip"]:
            limits = torch._foreach_norm(params)
            torch._foreach_clamp_min_(limits, group["min_norm"])
            torch._foreach_mul_(limits, group["clip"])
            norms = torch._foreach_norm(grads)
            torch._foreach_clamp_min_(norms, torch.finfo(grads[0].dtype).tiny)
            torch._foreach_div_(limits, norms)
            torch._foreach_clamp_max_(limits, 1.0)
            grads = torch._foreach_mul(grads, limits)
        torch._foreach_mul_(squares, b2)
        torch._foreach_addcmul_(squares, grads, grads, 1 - b2)
        scale = torch._foreach_div(squares, 1 - b2 ** group["step"])
        torch._foreach_sqrt_(scale)
        torch._foreach_add_(scale, group["eps"])
        torch._foreach_mul_(momenta, b1)
        torch._foreach_addcdiv_(momenta, grads, scale, 1 - b1)
        torch._foreach_add_(params, momenta, alpha=-group["lr"] / (1 - b1 ** group["step"]))
