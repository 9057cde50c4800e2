"""Learning to act in imagination: returns, their normalisation, and the actor and critic losses (DreamerV3, "Critic", "Actor")."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lit_wm.distributed import gather_rows
from lit_wm.dreamer.heads import Actor, ContinueHead, RegressionHead
from lit_wm.dreamer.rssm import RSSM


def in_pieces(head: Callable[[Tensor], Tensor], x: Tensor, rows: int = 1024) -> Tensor:
    """``head`` of (K,N,F), on a CPU a thousand rows at a time: they stay in its cache from layer to layer (1.3x)."""
    if x.device.type != "cpu":
        return head(x)
    return torch.cat([head(piece) for piece in x.flatten(0, 1).split(rows)]).unflatten(0, x.shape[:2])


@torch.no_grad()
def predict(
    reward: RegressionHead, cont: ContinueHead, slow_critic: RegressionHead, feature: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """What three heads that learn nothing here say of (K,N,F) imagined states, each (K,N).

    Their first layers are made one: a product of matrices as narrow as one head's runs at half the speed.

    Returns:
        reward, continue probability (which holds the discount), and the slow critic's value.
    """
    heads = (reward, cont, slow_critic)
    weight, bias = (torch.cat([getattr(head.mlp[0], name) for head in heads]) for name in ("weight", "bias"))

    def read(rows: Tensor) -> Tensor:
        hidden = F.linear(rows, weight, bias).chunk(len(heads), -1)
        r, c, v = (head.finish(head.mlp.after_first(x)) for head, x in zip(heads, hidden, strict=True))
        return torch.stack([reward.mean(r), c.sigmoid(), slow_critic.mean(v)], -1)

    return in_pieces(read, feature).unbind(-1)


def lambda_returns(reward: Tensor, discount: Tensor, trace: Tensor, value: Tensor, bootstrap: Tensor) -> Tensor:
    """ret_t = r_t + d_t ((1 - c_t) v_t + c_t ret_{t+1}), from the back; every argument holds what arrives at t+1.

    Args:
        reward, discount, trace, value: (N,K) at steps 1..K: r, d (0 where the episode ended), c (lambda), v.
        bootstrap: (N,) the return beyond step K.

    Returns:
        (N,K) returns of steps 0..K-1.
    """
    returns = []
    later = bootstrap
    for t in reversed(range(reward.shape[1])):
        later = reward[:, t] + discount[:, t] * ((1 - trace[:, t]) * value[:, t] + trace[:, t] * later)
        returns.append(later)
    return torch.stack(returns[::-1], 1)


RETURN_RATE = 0.01  # of the moving range of returns


class ReturnNormalizer(nn.Module):
    """Running 5th and 95th percentile of returns; the scale is max(1, high - low). No debiasing: it starts at 0.

    Args:
        rate: of the exponential moving average.
    """

    def __init__(self, rate: float = RETURN_RATE) -> None:
        super().__init__()
        self.rate = rate
        self.register_buffer("low", torch.zeros(()))
        self.register_buffer("high", torch.zeros(()))

    @torch.no_grad()
    def update(self, returns: Tensor) -> None:
        """Move towards the percentiles of (...,) returns, taken over the batches of all ranks."""
        everyone = gather_rows(returns.detach().flatten()).to(self.low.dtype)
        self.low.lerp_(torch.quantile(everyone, 0.05), self.rate)
        self.high.lerp_(torch.quantile(everyone, 0.95), self.rate)

    @property
    def scale(self) -> Tensor:
        return (self.high - self.low).clamp_min(1)


@dataclass
class Imagination:
    """N imagined trajectories of H+1 states; state 0 is the real one.

    Time comes first here, so that the first H states, or the last one, are a piece of memory that needs no copy.

    Attributes:
        feature: (H+1,N,F), no gradient.
        action: (H+1,N,A), also sampled at the last state.
    """

    feature: Tensor
    action: Tensor


def room(deter: Tensor, stoch: Tensor, horizon: int, had: Tensor | None = None) -> Tensor:
    """Memory (H+1,N,F) for what is imagined from (N,D), (N,S,C): ``had`` if it fits. Tens of megabytes that are new in each
    update cost a twentieth of it, because the kernel clears them."""
    shape = (horizon + 1, len(deter), deter.shape[-1] + stoch[0].numel())
    if had is not None and (had.shape, had.dtype, had.device) == (shape, deter.dtype, deter.device):
        return had
    with torch.inference_mode(False):  # or it could be used for nothing else later
        return torch.empty(shape, dtype=deter.dtype, device=deter.device)


@torch.no_grad()
def imagine(
    rssm: RSSM,
    actor: Actor,
    deter: Tensor,
    stoch: Tensor,
    horizon: int,
    sample: bool = True,
    features: Tensor | None = None,
) -> Imagination:
    """Follow the actor through the prior from (N,D), (N,S,C). No gradient: the actor learns by REINFORCE alone.

    ``sample=False`` takes the modes of actions and latents. ``features`` (H+1,N,F) is memory to write to, of :func:`room`.
    """
    if features is None:
        features = room(deter, stoch, horizon)
    actions, weights = [], rssm.hidden_weights()
    for t, x in enumerate(features):
        torch.cat([deter, stoch.flatten(1)], 1, out=x)  # straight into its place
        actions.append(actor.sample(actor(x), mode=not sample))
        if t < horizon:
            deter, stoch = rssm.imagine_step(deter, stoch, actions[t], 1.0 if sample else 0.0, weights=weights)
    return Imagination(features, torch.stack(actions))


@dataclass(frozen=True)
class BehaviorSettings:
    """Constants of actor and critic, DreamerV3's values.

    Args:
        horizon: length of the discount, 1 - 1/horizon per step.
        lam: lambda of the lambda-return.
        entropy: weight of the actor's entropy.
        slow_regularizer: weight of the critic's second target, the slow critic.
        normalize_returns: divide advantages by the scale of returns; False leaves them as they are.
    """

    horizon: int = 333
    lam: float = 0.95
    entropy: float = 3e-4
    slow_regularizer: float = 1.0
    normalize_returns: bool = True


def imagination_losses(
    dream: Imagination,
    reward: Tensor,
    cont: Tensor,
    actor: Actor,
    critic: RegressionHead,
    slow_value: Tensor,
    normalizer: ReturnNormalizer,
    settings: BehaviorSettings,
    update_normalizer: bool,
) -> tuple[dict[str, Tensor], Tensor, dict[str, Tensor]]:
    """Actor and critic losses on imagined trajectories.

    Args:
        dream: N trajectories of H+1 states.
        reward, cont, slow_value: (H+1,N) from :func:`predict`.

    Returns:
        ``policy`` and ``value`` losses (N,H); the raw returns (N,H); and quantities to log.
    """
    x = dream.feature[:-1]
    value_logits = in_pieces(critic, x)
    with torch.no_grad():
        value = torch.cat([critic.mean(value_logits), critic.mean(critic(dream.feature[-1:]))])
        trace = torch.full_like(cont[1:], settings.lam)
        returns = lambda_returns(reward[1:].T, cont[1:].T, trace.T, value[1:].T, value[-1])
        weight = cont.cumprod(0)[:-1].T  # step 0 counts with its own predicted continuation
        if update_normalizer:
            normalizer.update(returns)
        advantage = returns - value[:-1].T
        if settings.normalize_returns:
            advantage = advantage / normalizer.scale
    log_pi, entropy = actor.log_prob_and_entropy(in_pieces(actor, x), dream.action[:-1])
    to_returns, to_slow = critic.loss(value_logits, torch.stack([returns.T, slow_value[:-1]], -1)).unbind(-1)
    losses = {
        "policy": -weight * (log_pi.T * advantage + settings.entropy * entropy.T),
        "value": weight * (to_returns + settings.slow_regularizer * to_slow).T,
    }
    logged = {"return": returns.mean(), "value_mean": value.mean(), "entropy": entropy.mean().detach()}
    return losses, returns, logged


def replay_value_loss(
    feature_btf: Tensor,
    bootstrap: Tensor,
    reward: Tensor,
    is_last: Tensor,
    is_terminal: Tensor,
    critic: RegressionHead,
    slow_critic: RegressionHead,
    settings: BehaviorSettings,
) -> Tensor:
    """The critic on the real sequence; its gradient flows into the RSSM and the encoder.

    Args:
        feature_btf: (B,T,F) posterior features, with gradient.
        bootstrap: (B,T) imagined return from the same states.
        reward, is_last, is_terminal: (B,T).

    Returns:
        (B,T-1) loss; steps at the end of an episode weigh nothing.
    """
    discount = (~is_terminal[:, 1:]).to(reward.dtype) * (1 - 1 / settings.horizon)
    trace = settings.lam * (~is_last[:, 1:]).to(reward.dtype)
    returns = lambda_returns(reward[:, 1:], discount, trace, bootstrap[:, 1:], bootstrap[:, -1])
    x = feature_btf[:, :-1]
    logits = critic(x)
    with torch.no_grad():
        slow_target = slow_critic.mean(slow_critic(x))
    to_returns, to_slow = critic.loss(logits, torch.stack([returns, slow_target], -1)).unbind(-1)
    loss = to_returns + settings.slow_regularizer * to_slow
    return loss * (~is_last[:, :-1]).to(loss.dtype)
