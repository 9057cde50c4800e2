"""Proof that the golden comparison bites: mistakes that ports of DreamerV3 make, each made here on purpose.

Every mistake changes one function or setting of an otherwise untouched module. The comparison must catch it at the stage
named and at none before: a missing stop-gradient leaves every forward number right, and Adam's order every gradient.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from golden_comparison import SEQUENCES, forward, gradients, gradients_by_term, updates, violations
from golden_reference import GOLDEN, NOT_AT_HAND, Reference
from lightning import LightningModule

from lit_wm.distributed import ema_update
from lit_wm.dreamer import decoder, encoder, heads, latents, module
from lit_wm.dreamer.behavior import Imagination, ReturnNormalizer
from lit_wm.dreamer.distributions import UNIMIX, symlog, unimix_log_probs
from lit_wm.dreamer.layers import RMSNorm
from lit_wm.dreamer.rssm import feature
from lit_wm.dreamer.sizes import BLOCKS
from lit_wm.optim.laprop import LaProp

pytestmark = pytest.mark.skipif(not GOLDEN.exists(), reason=NOT_AT_HAND)
DOUBLE = torch.float64
EVERY_TERM = "image vector rew con dyn rep policy value repval"
Maker = Callable[[Reference, pytest.MonkeyPatch], None]
MISTAKES: list = []


def mistake(stage: str, terms: str = "") -> Callable[[Maker], Maker]:
    """Register a mistake, the first stage that must catch it, and the loss terms that must move (and no other)."""

    def register(make: Maker) -> Maker:
        MISTAKES.append(pytest.param(make, stage, set(terms.split()), id=make.__name__))
        return make

    return register


# ---- the world model -------------------------------------------------------------------------------------------------


@mistake("forward", "vector")
def decoder_reads_deter_first(reference, patch):
    width = reference.model.rssm.size.stoch * reference.model.rssm.size.classes
    reference.model.decoder.mlp.register_forward_pre_hook(lambda _, inputs: inputs[0].roll(-width, -1))


@mistake("forward", "rew con policy value repval")
def heads_read_stoch_first(reference, patch):
    heads = (reference.model.reward, reference.model.cont, reference.model.critic, reference.model.slow_critic)
    for head in (*heads, reference.model.actor):
        head.register_forward_pre_hook(lambda _, inputs: inputs[0].roll(-reference.model.rssm.size.deter, -1))


def with_gates(reference, patch, change):
    """Change the gates (blocks, N, 3 D/blocks) on their way into the recurrence."""
    gates = reference.model.rssm.gates
    blocks = gates.blocks
    patch.setattr(gates, "blocks", lambda x: change(blocks(x)))


@mistake("forward", EVERY_TERM)
def gates_split_over_the_flat_vector(reference, patch):
    def flat(x_gno):
        n = x_gno.shape[1]
        return x_gno.transpose(0, 1).reshape(n, 3, BLOCKS, -1).permute(2, 0, 1, 3).reshape(x_gno.shape)

    with_gates(reference, patch, flat)


@mistake("forward", EVERY_TERM)
def update_gate_without_its_bias_of_minus_one(reference, patch):
    raised = torch.tensor([[0.0], [0.0], [1.0]], dtype=DOUBLE)  # reset, candidate, update
    with_gates(reference, patch, lambda x: (x.unflatten(-1, (3, -1)) + raised).flatten(-2))


@mistake("forward", EVERY_TERM)
def norm_with_a_smaller_epsilon(reference, patch):
    for part in reference.model.modules():
        if isinstance(part, RMSNorm):
            part.eps = 1e-5


@mistake("forward", EVERY_TERM)
def pool_after_the_norm(reference, patch):
    pool = F.max_pool2d
    patch.setattr(encoder.F, "max_pool2d", lambda x, size: x)
    for layer in reference.model.encoder.norms:
        layer.register_forward_hook(lambda layer, inputs, out: pool(out, 2))


@mistake("forward", "dyn rep")
def vector_fed_without_symlog(reference, patch):
    """Only the KL sees it: the latents keep their modes here, so everything behind them keeps its value."""
    patch.setattr(encoder, "symlog", lambda x: x)


@mistake("forward", "vector")
def vector_reconstructed_without_symlog(reference, patch):
    patch.setattr(decoder, "symlog", lambda x: x)


@mistake("forward", "image")
def image_decoder_reads_channels_across_blocks(reference, patch):
    """The block linear's output read as (h, w, g c) at once, not as (g, h, w, c)."""
    h, w, c = reference.model.decoder.grid

    def regrouped(layer, inputs, out):
        return out.view(-1, h, w, BLOCKS, c // BLOCKS).permute(0, 3, 1, 2, 4).flatten(1)

    reference.model.decoder.from_deter.register_forward_hook(regrouped)


@mistake("forward", EVERY_TERM)
def state_kept_at_a_reset(reference, patch):
    observe = reference.model.rssm.observe

    def unwiped(tokens, actions, is_first, carry, sample):
        return observe(tokens, actions * ~is_first.unsqueeze(-1), torch.zeros_like(is_first), carry, sample)

    patch.setattr(reference.model.rssm, "observe", unwiped)


@mistake("forward", EVERY_TERM)
def previous_action_kept_at_a_reset(reference, patch):
    embed = reference.model.rssm.embed_actions
    kept = reference.previous  # of all steps; imagined actions come one at a time
    patch.setattr(reference.model.rssm, "embed_actions", lambda a: embed(kept if a.shape == kept.shape else a))


@mistake("forward", EVERY_TERM)
def wiped_action_taken_for_class_0(reference, patch):
    embed = reference.model.rssm.embed_actions
    first = torch.eye(5, dtype=DOUBLE)[0]
    patch.setattr(reference.model.rssm, "embed_actions", lambda a: embed(a + first * (a == 0).all(-1, keepdim=True)))


def without_unimix(log_p):
    """The plain softmax back from its mixture with a uniform distribution."""
    return (log_p.exp() - UNIMIX / log_p.shape[-1]) / (1 - UNIMIX)


@mistake("forward", "dyn rep")
def kl_without_unimix(reference, patch):
    kl = latents.categorical_kl
    patch.setattr(latents, "categorical_kl", lambda p, q: kl(without_unimix(p).log(), without_unimix(q).log()))


@mistake("forward", "dyn rep")
def free_bits_per_latent(reference, patch):
    share = reference.model.hparams.free_nats / reference.model.rssm.size.stoch

    def kl(log_p, log_q):
        return (log_p.exp() * (log_p - log_q)).sum(-1).clamp_min(share).sum(-1)

    patch.setattr(latents, "categorical_kl", kl)


@mistake("forward")
def kl_terms_scaled_as_in_the_first_version(reference, patch):
    """The terms are right; the total and the gradients tell."""
    reference.model.scales["dyn"] = 0.5


@mistake("gradients")
def straight_through_without_unimix(reference, patch):
    sample = latents.sample_one_hot

    def plain(log_probs, noise):
        probs = without_unimix(log_probs)
        return sample(log_probs.detach(), noise) + probs - probs.detach()

    patch.setattr(latents, "sample_one_hot", plain)


@mistake("gradients")
def samples_without_gradient(reference, patch):
    sample = latents.sample_one_hot
    patch.setattr(latents, "sample_one_hot", lambda log_probs, noise: sample(log_probs.detach(), noise))


def with_leaking_kl(reference, patch, sides):
    """Give the KL terms, on the sides that ``sides`` chooses, the posterior's own tensors with their gradient."""
    losses, kl = reference.model.world_model_losses, latents.categorical_kl

    def leaking(post, batch):
        patch.setattr(latents, "categorical_kl", lambda log_q, log_p: kl(*sides(post, log_q, log_p)))
        return losses(post, batch)

    patch.setattr(reference.model, "world_model_losses", leaking)


@mistake("gradients")
def dynamics_loss_trains_the_posterior(reference, patch):
    with_leaking_kl(reference, patch, lambda post, log_q, log_p: (post.q, log_p))


@mistake("gradients")
def representation_loss_trains_the_prior(reference, patch):
    with_leaking_kl(reference, patch, lambda post, log_q, log_p: (log_q, post.p))


@mistake("forward", "con")
def continue_target_without_the_discount(reference, patch):
    name, cross_entropy = "binary_cross_entropy_with_logits", F.binary_cross_entropy_with_logits
    patch.setattr(module.F, name, lambda logit, target, **kind: cross_entropy(logit, target.round(), **kind))


@mistake("forward", "rew value repval")
def twohot_interpolated_in_symlog_space(reference, patch):
    name, loss = "twohot_cross_entropy", heads.twohot_cross_entropy
    patch.setattr(heads, name, lambda logits, target, bins: loss(logits, symlog(target), symlog(bins)))


# ---- acting in imagination -------------------------------------------------------------------------------------------


def with_continuation(reference, patch, change):
    """Change the predicted continue probabilities on their way into the losses of actor and critic."""
    name, losses = "imagination_losses", module.imagination_losses
    patch.setattr(module, name, lambda dream, reward, cont, *rest: losses(dream, reward, change(cont), *rest))


@mistake("forward", "policy value repval")
def hard_continue(reference, patch):
    with_continuation(reference, patch, torch.round)


@mistake("forward", "policy value repval")
def discount_applied_twice(reference, patch):
    with_continuation(reference, patch, lambda cont: cont * (1 - 1 / 333))


@mistake("forward", "policy value")
def weights_without_step_0(reference, patch):
    with_continuation(reference, patch, lambda cont: torch.cat([torch.ones_like(cont[:1]), cont[1:]]))


@mistake("forward", "policy")
def frozen_return_normaliser(reference, patch):
    patch.setattr(ReturnNormalizer, "update", lambda self, returns: None)


@mistake("forward", "policy")
def return_normaliser_used_before_its_update(reference, patch):
    losses = module.imagination_losses

    def late(*arguments):
        result = losses(*arguments[:-1], False)
        reference.model.normalizer.update(result[1])
        return result

    patch.setattr(module, "imagination_losses", late)


@mistake("forward", "policy")
def advantages_not_normalised(reference, patch):
    patch.setattr(ReturnNormalizer, "scale", torch.ones((), dtype=DOUBLE))


@mistake("forward", "policy value repval")
def slow_critic_as_bootstrap(reference, patch):
    critic, slow, seen = reference.model.critic, reference.model.slow_critic, []
    critic.register_forward_hook(lambda head, inputs, out: seen.append(inputs[0]))
    patch.setattr(critic, "mean", lambda logits: slow.mean(slow(seen[-1])).view(logits.shape[:-1]))


@mistake("forward", "policy")
def entropy_punished(reference, patch):
    settings = reference.model.settings
    patch.setattr(reference.model, "settings", replace(settings, entropy=-settings.entropy))


@mistake("forward", "policy")
def unimix_in_the_policy(reference, patch):
    reference.model.actor.register_forward_hook(lambda actor, inputs, out: unimix_log_probs(out))


@mistake("gradients")
def imagination_with_gradient(reference, patch):
    def dream(rssm, actor, deter, stoch, horizon, sample):
        features, actions = [], []
        for _ in range(horizon + 1):
            features.append(feature(deter, stoch))
            actions.append(actor.sample(actor(features[-1]), mode=not sample))
            deter, stoch = rssm.imagine_step(deter, stoch, actions[-1], temperature=0)
        return Imagination(torch.stack(features), torch.stack(actions))

    patch.setattr(module, "imagine", dream)


def with_replay(patch, change):
    """Change what goes into the critic's loss on the real sequence."""
    loss = module.replay_value_loss
    patch.setattr(module, "replay_value_loss", lambda *arguments: loss(*change(*arguments)))


@mistake("gradients")
def replay_value_stops_at_the_features(reference, patch):
    with_replay(patch, lambda x, *rest: (x.detach(), *rest))


@mistake("forward", "repval")
def replay_value_ignores_the_end_of_an_episode(reference, patch):
    with_replay(patch, lambda x, boot, reward, last, *rest: (x, boot, reward, torch.zeros_like(last), *rest))


@mistake("forward", "repval")
def replay_value_bootstraps_after_death(reference, patch):
    with_replay(
        patch,
        lambda x, boot, reward, last, terminal, *rest: (x, boot, reward, last, torch.zeros_like(terminal), *rest),
    )


@mistake("forward", "repval")
def replay_value_averaged_over_one_step_too_many(reference, patch):
    loss = module.replay_value_loss
    patch.setattr(module, "replay_value_loss", lambda *arguments: F.pad(loss(*arguments), (0, 1)))


# ---- the optimizer ---------------------------------------------------------------------------------------------------


@mistake("updates")
def momentum_before_scaling(reference, patch):
    """Adam's order in place of LaProp's."""

    def adam(self, group, params):
        group["step"] += 1
        b1, b2 = group["betas"]
        for p in params:
            limit = group["clip"] * p.norm().clamp_min(group["min_norm"])
            gradient = p.grad * (limit / p.grad.norm()).clamp_max(1)
            momentum = self.state[p]["momentum"].lerp_(gradient, 1 - b1) / (1 - b1 ** group["step"])
            square = self.state[p]["square"].lerp_(gradient**2, 1 - b2) / (1 - b2 ** group["step"])
            p.sub_(group["lr"] * momentum / (square.sqrt() + group["eps"]))

    patch.setattr(LaProp, "_update", adam)


@mistake("updates")
def gradients_not_clipped(reference, patch):
    reference.model.hparams.agc = 0


@mistake("updates")
def adams_usual_epsilon(reference, patch):
    patch.setattr(module, "LaProp", lambda *args, **settings: LaProp(*args, eps=1e-8, **settings))


@mistake("updates")
def no_warm_up(reference, patch):
    reference.model.hparams.warmup_steps = 0


@mistake("updates")
def slow_critic_moved_before_the_step(reference, patch):
    model = reference.model

    def early(*arguments):
        ema_update(model.slow_critic, model.critic, 1 - model.hparams.slow_rate)
        LightningModule.optimizer_step(model, *arguments)

    patch.setattr(model, "optimizer_step", early)


@mistake("updates")
def slow_critic_copied(reference, patch):
    reference.model.hparams.slow_rate = 1.0


# ---- the proof -------------------------------------------------------------------------------------------------------


def first_caught(make: Maker) -> tuple[str, list[str]]:
    """The first stage that misses golden numbers, and which; the stages after it are not run."""
    with pytest.MonkeyPatch.context() as patch:
        reference = Reference(DOUBLE)
        make(reference, patch)
        numbers, terms = forward(reference)
        if missed := violations(numbers, reference.run, DOUBLE):
            return "forward", missed
        if missed := violations(gradients(reference, terms), reference.run, DOUBLE):
            return "gradients", missed
    for sequence, options in SEQUENCES.items():
        with pytest.MonkeyPatch.context() as patch:
            reference = Reference(DOUBLE, **options)
            make(reference, patch)
            if missed := violations({sequence: updates(reference)}, reference.run, DOUBLE):
                return "updates", missed
    return "nothing", []


@pytest.mark.parametrize(("make", "stage", "terms"), MISTAKES)
def test_a_mistake_is_caught(make, stage, terms):
    caught, missed = first_caught(make)
    assert caught == stage
    assert {path.split(".")[1] for path in missed if path.startswith("loss_terms_unscaled")} == terms


def test_without_a_mistake_nothing_is_caught():
    assert first_caught(lambda reference, patch: None) == ("nothing", [])


LEAKS = {
    dynamics_loss_trains_the_posterior: {"dyn.dyn", "dyn.enc"},
    representation_loss_trains_the_prior: {"rep.dyn", "rep.enc"},
    replay_value_stops_at_the_features: {"repval.dyn", "repval.enc"},
    imagination_with_gradient: {"policy.dyn", "value.dyn"},
}


@pytest.mark.parametrize("make", LEAKS, ids=lambda make: make.__name__)
def test_a_leak_shows_in_the_terms_own_gradient(make):
    """By term and module the exact zeros tell where a gradient went that should not have gone, or did not arrive."""
    with pytest.MonkeyPatch.context() as patch:
        reference = Reference(DOUBLE)
        make(reference, patch)
        missed = violations(gradients_by_term(reference, reference.losses()), reference.run, DOUBLE)
    assert {path.split(".", 1)[1] for path in missed} == LEAKS[make]
