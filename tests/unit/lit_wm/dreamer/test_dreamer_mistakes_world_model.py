"""Proof that the golden comparison bites, in the world model and in what it makes of a batch.

Mistakes that ports of DreamerV3 make, each made here on purpose.
"""

import pytest
import torch
import torch.nn.functional as F
from golden_mistakes import DOUBLE, EVERY_TERM, Mistakes, first_caught, leaks

from lit_wm.dreamer import decoder, encoder, heads, latents, module
from lit_wm.dreamer.distributions import UNIMIX, symlog
from lit_wm.dreamer.layers import RMSNorm
from lit_wm.dreamer.sizes import BLOCKS

mistake = Mistakes()


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
    kept = F.one_hot(reference.batch["action"][:, :-1], 5).to(DOUBLE)  # of all steps; imagined ones come one at a time
    patch.setattr(reference.model.rssm, "embed_actions", lambda a: embed(kept if a.shape == kept.shape else a))


@mistake("forward", EVERY_TERM)
def wiped_action_taken_for_class_0(reference, patch):
    embed = reference.model.rssm.embed_actions
    first = torch.eye(5, dtype=DOUBLE)[0]
    patch.setattr(reference.model.rssm, "embed_actions", lambda a: embed(a + first * (a == 0).all(-1, keepdim=True)))


@mistake("forward", EVERY_TERM)
def actions_of_a_replayed_clip_not_shifted(reference, patch):
    """The action that is taken after a frame, in place of the one that led to it."""
    vectors = module.action_vectors
    patch.setattr(module, "action_vectors", lambda *arguments: vectors(*arguments).roll(-1, 1))


@mistake("recording")
def actions_of_a_recording_not_shifted(reference, patch):
    patch.setattr(module, "previous_actions", lambda action, is_first: action * ~is_first.unsqueeze(-1))


@mistake("forward", EVERY_TERM)
def stored_state_not_used(reference, patch):
    observe = reference.model.rssm.observe
    patch.setattr(
        reference.model.rssm,
        "observe",
        lambda tokens, actions, is_first, carry=None, sample=True: observe(tokens, actions, is_first, None, sample),
    )


@mistake("forward", EVERY_TERM)
def context_row_trained_in_place_of_the_last(reference, patch):
    after = module.after_context
    patch.setattr(module, "after_context", lambda batch: after({key: x.roll(1, 1) for key, x in batch.items()}))


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


@mistake("forward", "dyn")
def kl_terms_scaled_as_in_the_first_version(reference, patch):
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


# ---- the proof -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("make", "stage", "terms"), mistake.made)
def test_a_mistake_is_caught(make, stage, terms):
    assert first_caught(make) == (stage, terms)


LEAKS = {
    dynamics_loss_trains_the_posterior: {"dyn.dyn", "dyn.enc"},
    representation_loss_trains_the_prior: {"rep.dyn", "rep.enc"},
}


@pytest.mark.parametrize("make", LEAKS, ids=lambda make: make.__name__)
def test_a_leak_shows_in_the_terms_own_gradient(make):
    """By term and module the exact zeros tell where a gradient went that should not have gone, or did not arrive."""
    assert leaks(make) == LEAKS[make]
