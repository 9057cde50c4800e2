"""Batch normalisation over the batch of all ranks, on any device."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lit_wm.distributed import global_mean, world_size


class GlobalBatchNorm(nn.BatchNorm1d):
    """``BatchNorm1d`` of (..., D) whose statistics are those of all samples of all ranks (torch's own ``SyncBatchNorm`` needs GPUs).

    Every rank must bring the same number of samples.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., D)."""
        x_nd = x.flatten(0, -2)
        if not (self.training and world_size() > 1):
            return super().forward(x_nd).view_as(x)
        mean = global_mean(x_nd.mean(0))
        variance = global_mean((x_nd - mean).square().mean(0))
        with torch.no_grad():
            n = len(x_nd) * world_size()
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * n / (n - 1), self.momentum)
            self.num_batches_tracked += 1
        return (((x_nd - mean) * (variance + self.eps).rsqrt()) * self.weight + self.bias).view_as(x)
