"""Our numbers in the golden file's own structure, and which of the golden ones they miss.

The green tests and the tests of deliberate mistakes compare by these functions alone, so that what the mistakes prove of
the comparison holds for the tests that pass.
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import torch
from golden_reference import MODULES, Losses, Reference, since_reset, watch
from torch import Tensor

from lit_wm.dreamer import behavior, module
from lit_wm.dreamer.distributions import categorical_kl
from lit_wm.dreamer.layers import join_phases
from lit_wm.dreamer.rssm import feature

# The file's two sequences of updates, and the settings of the module behind each; the warm-up is its default.
SEQUENCES = {"updates_nowarmup_lr1e-3": {"lr": 1e-3, "warmup_steps": 0}, "updates_warmup1000_lr4e-5": {}}

# ---- comparing -------------------------------------------------------------------------------------------------------


def violations(found: dict[str, Any], golden: dict[str, Any], dtype: torch.dtype) -> list[str]:
    """Paths of the golden numbers that are not met, such as ``loss_terms_unscaled.dyn``.

    Both arguments have the file's structure, the first perhaps only some of its sections. Within those a number that only
    one of them holds is a violation too, so that nothing is passed over.
    """
    ours, theirs = flatten(found), flatten({key: golden[key] for key in found})
    missed = ours.keys() ^ theirs.keys()
    missed |= {path for path in ours.keys() & theirs.keys() if not met(path, ours[path], theirs, dtype)}
    return sorted(missed)


def flatten(tree: Any, path: str = "") -> dict[str, np.ndarray]:
    """Nested dicts, and lists of dicts, to path -> number or array of numbers."""
    if isinstance(tree, list) and isinstance(tree[0], dict):
        tree = {str(i + 1): value for i, value in enumerate(tree)}
    if not isinstance(tree, dict):
        return {path: np.asarray(tree.detach() if isinstance(tree, Tensor) else tree)}
    leaves = {}
    for key, value in tree.items():
        leaves |= flatten(value, f"{path}.{key}" if path else key)
    return leaves


def met(path: str, found: np.ndarray, golden: dict[str, np.ndarray], dtype: torch.dtype) -> bool:
    """Whether a number is within its tolerance; whole numbers (classes, counts) must be equal.

    In float32 an array's small entries are only as good as its large ones, so all are held to the largest. A sum may
    cancel, so it is also allowed an error relative to the norm of what was summed.
    """
    expected = golden[path]
    if found.shape != expected.shape:
        return False
    if expected.dtype.kind == "i":
        return bool((found == expected).all())
    double = dtype == torch.float64
    allowed = tolerance(path, dtype) * (abs(expected) if double else abs(expected).max())
    squares = re.sub(r"sum(_at\.\d,\d)?(?=$|_per_t$)", "sumsq", path)
    if path.startswith("grad_sum"):
        allowed = allowed + (1e-8 if double else 1e-5) * golden[path.replace("grad_sum", "grad_norm")]
    elif squares != path and squares in golden:
        allowed = allowed + (1e-8 if double else 1e-5) * np.sqrt(golden[squares])
    return bool((abs(found - expected) <= allowed).all())


def tolerance(path: str, dtype: torch.dtype) -> float:
    """The relative tolerances of the golden file's notes."""
    if dtype == torch.float64:  # the reference computes its warm-up in float32 even here
        return 1e-4 if "warmup1000" in path and "update_norm" in path else 1e-8
    return 1e-3 if "update_norm" in path else 1e-4 if "grad" in path else 2e-5


# ---- measuring -------------------------------------------------------------------------------------------------------


def forward(reference: Reference) -> tuple[dict[str, Any], Losses]:
    """One evaluation of all losses, which moves the return normaliser: its golden numbers, and the losses themselves.

    What the losses are made of is read off where the module computes it, not computed anew; only the heads are asked
    again what they predict.
    """
    model = reference.model
    with pytest.MonkeyPatch.context() as patch:
        tokens = watch(patch, model.encoder, "forward")
        filtered = watch(patch, model.rssm, "observe")
        posterior, prior = watch(patch, model.rssm.posterior_out, "forward"), watch(patch, model.rssm.prior, "forward")
        vector = watch(patch, model.decoder.vectors["vector"], "forward")
        image = watch(patch, model.decoder, "picture_phases")
        dreamt = watch(patch, module, "imagine")
        returns = watch(patch, behavior, "lambda_returns")
        chosen = watch(patch, model.actor, "log_prob_and_entropy")
        value_terms = watch(patch, model.critic, "loss")
        replayed = watch(patch, module, "replay_value_loss")
        losses = reference.losses()
    with torch.no_grad():
        post, normalizer = filtered[0][1], model.normalizer
        logits = {
            "post": torch.stack([result for _, result in posterior], 1),  # one call per step
            "prior": prior[0][1],
        }
        pictures = join_phases(image[0][1]).unflatten(0, post.deter.shape[:-1])
        decoded = {"image": pictures, "vector": vector[0][1]}
        found = {
            "world_model": world_model_numbers(reference, tokens[0][1], post, logits, decoded),
            "loss_terms_unscaled": {name: value.mean() for name, value in losses.terms.items()},
            "loss_terms_scaled": losses.scaled,
            "total_scaled_loss": losses.total,
            "imagination": imagination_numbers(
                reference, dreamt[0][1], returns[0][1], chosen[0][1], value_terms[0][1], losses.terms
            ),
            "replay_value": {"ret": returns[1][1], "boot": replayed[0][0][1]},
            "retnorm_after_update": {
                "lo": normalizer.low.item(),
                "hi": normalizer.high.item(),
                "scale": normalizer.scale,
            },
            "dyn_entropy": {"prior": entropy(post.p).mean(), "posterior": entropy(post.q).mean()},
        }
    return found, losses


def recording(reference: Reference) -> dict[str, Any]:
    """The posterior of an offline clip, from its first reset on."""
    with torch.no_grad():
        post = reference.model.filter(reference.recording)
    seen = since_reset(reference.recording["is_first"])
    return {
        "recording_since_reset": {
            "kl_before_free_bits": categorical_kl(post.q, post.p)[seen],
            "posterior_argmax": post.stoch.argmax(-1)[seen],
        }
    }


def entropy(log_p: Tensor) -> Tensor:
    """Of (..., S,C) log-probabilities, summed over latents."""
    return -(log_p.exp() * log_p).sum((-2, -1))


def world_model_numbers(reference: Reference, tokens: Tensor, post: Any, logits: dict, decoded: dict) -> dict[str, Any]:
    model, size = reference.model, reference.model.rssm.size
    x = feature(post.deter, post.stoch)
    modes = {key: value.unflatten(-1, (size.stoch, size.classes)).argmax(-1) for key, value in logits.items()}
    kl = categorical_kl(post.q, post.p)
    places = [(0, 0), (1, 3), (2, 5)]  # batch row, step

    def at(b: int, t: int) -> dict[str, Any]:
        numbers = {"kl_before_free_bits": kl[b, t]}
        for key, value in logits.items():
            numbers |= {f"{key}_logit": value[b, t], f"{key}_argmax": modes[key][b, t]}
            numbers |= {f"{key}_logit_sum": value[b, t].sum(), f"{key}_logit_sumsq": value[b, t].square().sum()}
        return numbers

    def sums(x: Tensor) -> dict[str, Any]:
        return {
            "sum": x.sum(),
            "sumsq": x.square().sum(),
            "sum_at": {f"{b},{t}": x[b, t].sum() for b, t in places},
        }

    return {
        "tokens_sum": tokens.sum(),
        "tokens_sumsq": tokens.square().sum(),
        "tokens_width": tokens.shape[-1],
        "tokens_sumsq_per_t": tokens.square().sum((0, 2)),
        "deter_sumsq_per_t": post.deter.square().sum((0, 2)),
        "deter_sum_per_t": post.deter.sum((0, 2)),
        "posterior_argmax_all": modes["post"],
        "kl_before_free_bits": kl,
        "at": {f"{b},{t}": at(b, t) for b, t in places},
        "decoder": {key: sums(value) for key, value in decoded.items()},
        "reward_pred": model.reward.mean(model.reward(x)),
        "continue_prob": model.cont(x).sigmoid(),
        "value_pred": model.critic.mean(model.critic(x)),
        "slow_value_pred": model.slow_critic.mean(model.slow_critic(x)),
        "policy_logits_at": {f"{b},{t}": model.actor(x)[b, t] for b, t in places},
    }


def imagination_numbers(
    reference: Reference, dream: Any, returns: Tensor, chosen: tuple, value_terms: Tensor, terms: dict[str, Tensor]
) -> dict[str, Any]:
    """Weights and advantages are solved for from the losses that used them. What is laid out time first is turned."""
    model, size = reference.model, reference.model.rssm.size
    x, actions = dream.feature.transpose(0, 1), dream.action.transpose(0, 1)
    deter, stoch = x.split((size.deter, size.stoch * size.classes), -1)
    predicted = {
        "reward": model.reward.mean(model.reward(x)),
        "cont": model.cont(x).sigmoid(),
        "value": model.critic.mean(model.critic(x)),
        "slow_value": model.slow_critic.mean(model.slow_critic(x)),
        "ret": returns,
    }
    log_pi, policy_entropy = (each.T for each in chosen)
    weight = terms["value"] / value_terms.sum(-1).T
    last_weight = weight[:, -1:] * predicted["cont"][:, -1:]  # the reference counts one more, which no loss uses
    advantage = (-terms["policy"] / weight - model.settings.entropy * policy_entropy) / log_pi
    normed = (returns - model.normalizer.low) / model.normalizer.scale
    return {
        "entropy_mean": policy_entropy.mean(),
        "rand_action": policy_entropy.mean() / np.log(5),
        "logpi_mean": log_pi.mean(),
        **{
            key: {"mean": value.mean(), "std": value.std(correction=0), "sumsq": value.square().sum()}
            for key, value in predicted.items()
        },
        "weight_mean": torch.cat([weight, last_weight], 1).mean(),
        "adv_mean": advantage.mean(),
        "adv_std": advantage.std(correction=0),
        "adv_mag": advantage.abs().mean(),
        "ret_normed_mean": normed.mean(),
        "ret_normed_min": normed.min(),
        "ret_normed_max": normed.max(),
        "ret_rate": (normed.abs() >= 1).double().mean(),
        "start0_rew": predicted["reward"][0],
        "start0_con": predicted["cont"][0],
        "start0_val": predicted["value"][0],
        "start0_slow_val": predicted["slow_value"][0],
        "start0_ret": returns[0],
        "start0_actions": actions[0].argmax(-1),
        "start0_deter_sumsq": deter[0, 1:].square().sum(-1),
        "start0_argmax": stoch[0, 1:].unflatten(-1, (size.stoch, size.classes)).argmax(-1),
        "policy_loss_per_step_mean": terms["policy"].mean(0),
        "value_loss_per_step_mean": terms["value"].mean(0),
        "shape_of_ret": list(returns.shape),
        "shape_of_rew": list(predicted["reward"].shape),
    }


def norm(tensors: list[Tensor]) -> Tensor:
    """Of all their entries together."""
    return torch.stack([x.detach().norm() for x in tensors]).norm() if tensors else torch.zeros(())


def gradients(reference: Reference, losses: Losses) -> dict[str, Any]:
    """Of the scaled total, before any clipping: by tensor, by module and of all."""
    reference.model.zero_grad()
    losses.total.backward(retain_graph=True)
    tensors = {name: reference.model.get_parameter(mine).grad for name, mine in reference.names.items()}
    tensors = {name: x for name, x in tensors.items() if x is not None}
    return {
        "grad_norm_per_tensor": {name: x.norm() for name, x in tensors.items()},
        "grad_sum_per_tensor": {name: x.sum() for name, x in tensors.items()},
        "grad_norm_per_module": {key: norm([p.grad for p in reference.parameters(key)]) for key in MODULES},
        "grad_norm_global": norm(list(tensors.values())),
    }


def gradients_by_term(reference: Reference, losses: Losses) -> dict[str, Any]:
    """Of each term alone, by module: where gradients may flow, and where not at all."""

    def flowing(term: Tensor, key: str) -> list[Tensor]:
        found = torch.autograd.grad(term.mean(), reference.parameters(key), retain_graph=True, allow_unused=True)
        return [x for x in found if x is not None]

    found = {name: {key: norm(flowing(term, key)) for key in MODULES} for name, term in losses.terms.items()}
    return {"grad_norm_per_term_and_module_unscaled": found}


def parameters(reference: Reference) -> dict[str, Any]:
    """Sizes and norms before any update."""
    return {
        "param_norm_per_module_before": {key: norm(reference.parameters(key)) for key in MODULES},
        "slowval_norm_before": norm(reference.parameters("slowval")),
        "param_count_per_module": {
            key: sum(p.numel() for p in reference.parameters(key)) for key in (*MODULES, "slowval")
        },
    }


def updates(reference: Reference) -> list[dict[str, Any]]:
    """Three updates on the same batch, by the module's own optimizer, schedule and slow critic."""
    model = reference.model
    configured = model.configure_optimizers()
    optimizer, schedule = configured["optimizer"], configured["lr_scheduler"]["scheduler"]
    return [{"update": number, **one_update(reference, optimizer, schedule)} for number in (1, 2, 3)]


def one_update(reference: Reference, optimizer: Any, schedule: Any) -> dict[str, Any]:
    model, numbers = reference.model, {}
    before = {key: [p.detach().clone() for p in reference.parameters(key)] for key in MODULES}

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = reference.losses().total
        loss.backward()
        numbers["loss_seen_by_this_update"] = loss.detach()
        gradients = [p.grad for key in MODULES for p in reference.parameters(key)]
        numbers["grad_norm_global_of_this_update"] = norm(gradients)
        return loss

    model.optimizer_step(0, 0, optimizer, closure)
    numbers["update_norm_per_module"] = {
        key: norm(steps(reference.parameters(key), before[key], optimizer)) for key in MODULES
    }
    schedule.step()
    numbers["param_norm_per_module_after"] = {key: norm(reference.parameters(key)) for key in MODULES}
    numbers["slowval_norm_after"] = norm(reference.parameters("slowval"))
    numbers["retnorm_after"] = {"lo": model.normalizer.low.item(), "hi": model.normalizer.high.item()}
    model.eval()  # freezes the return normaliser
    with torch.no_grad():
        losses = reference.losses()
    model.train()
    numbers["total_loss_reevaluated_no_retnorm_update"] = losses.total
    numbers["loss_terms_reevaluated"] = {name: value.mean() for name, value in losses.terms.items()}
    return numbers


def steps(after: list[Tensor], before: list[Tensor], optimizer: Any) -> list[Tensor]:
    """What the update added to some parameters.

    In float32 the smallest steps of the warm-up round away when they are added, so there the optimizer's momentum tells.
    """
    if after[0].dtype == torch.float64:
        return [new.detach() - old for new, old in zip(after, before, strict=True)]
    (group,) = optimizer.param_groups
    rate = group["lr"] / (1 - group["betas"][0] ** group["step"])
    return [rate * optimizer.state[p]["momentum"] for p in after]
