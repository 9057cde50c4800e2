"""Proof that the golden comparison bites, in actor and critic, in the sum of the losses and in the optimizer.

Mistakes that ports of DreamerV3 make, each made here on purpose.
"""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from golden_mistakes import DOUBLE, Mistakes, first_caught, leaks
from lightning import LightningModule

from lit_wm.distributed import ema_update
from lit_wm.dreamer import module
from lit_wm.dreamer.behavior import Imagination, ReturnNormalizer
from lit_wm.dreamer.distributions import unimix_log_probs
from lit_wm.dreamer.rssm import feature
from lit_wm.optim.laprop import LaProp

mistake = Mistakes()


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
    def dream(rssm, actor, deter, stoch, horizon, sample, memory):
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


# ---- the sum of the losses -------------------------------------------------------------------------------------------


@mistake("forward", "rep repval")
def losses_not_scaled(reference, patch):
    """The other scales are 1."""
    reference.model.scales = dict.fromkeys(module.LOSS_SCALES, 1.0)


@mistake("forward", "repval")
def replay_value_scaled_as_the_imagined_one(reference, patch):
    reference.model.scales["repval"] = reference.model.scales["value"]


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


@pytest.mark.parametrize(("make", "stage", "terms"), mistake.made)
def test_a_mistake_is_caught(make, stage, terms):
    assert first_caught(make) == (stage, terms)


def test_without_a_mistake_nothing_is_caught():
    assert first_caught(lambda reference, patch: None) == ("nothing", set())


LEAKS = {
    replay_value_stops_at_the_features: {"repval.dyn", "repval.enc"},
    imagination_with_gradient: {"policy.dyn", "value.dyn"},
}


@pytest.mark.parametrize("make", LEAKS, ids=lambda make: make.__name__)
def test_a_leak_shows_in_the_terms_own_gradient(make):
    """By term and module the exact zeros tell where a gradient went that should not have gone, or did not arrive."""
    assert leaks(make) == LEAKS[make]
