"""DreamerPolicy and the replay's batches: acting filters as training does, and training goes on from what was stored."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from test_dreamer_module import batch_of, small

from datamodules.experience import ActionSpace, ExperienceSpec, action_vectors
from lit_wm.dreamer.module import after_context
from lit_wm.dreamer.policy import environment_actions

VECTOR = ExperienceSpec({"vector": (5,)}, ActionSpace("discrete", (4,)))
PICTURE = ExperienceSpec({"frames": (64, 64, 3), "vector": (2,)}, ActionSpace("continuous", (2,)))


def played(model, spec, steps=6, n=3):
    """What a policy sees, does and stores in ``n`` environments; one of them begins an episode in the middle."""
    batch = batch_of(spec, b=n, t=steps)
    batch["is_first"][:, 0] = batch["is_first"][1, 3] = True
    policy = model.policy(0)
    memory, actions, stored = policy.initial_state(n), [], []
    for t in range(steps):
        seen = {key: batch[key][:, t].numpy() for key in spec.observations}
        for key in spec.pictures:
            seen[key] = seen[key].transpose(0, 2, 3, 1)
        action, memory, extras = policy.act(seen, batch["is_first"][:, t].numpy(), memory)
        actions.append(torch.as_tensor(action)), stored.append(extras)
    return batch | {"action": torch.stack(actions, 1)}, stored


@pytest.mark.parametrize("spec", [VECTOR, PICTURE])
def test_training_from_stored_latents_goes_through_the_states_that_acting_went_through(spec):
    """With the same latents drawn, row by row: the deterministic state depends on stored state, action and resets alone."""
    model = small(spec).eval()
    batch, stored = played(model, spec)
    for t in range(5):
        pair = {key: x[:, t : t + 2] for key, x in batch.items()}
        pair |= {f"latent_{key}": torch.as_tensor(stored[t][key]) for key in ("deter", "stoch")}
        post = model.filter(pair)
        assert post.deter.shape[:2] == (3, 1)
        torch.testing.assert_close(post.deter[:, 0], torch.as_tensor(stored[t + 1]["deter"]), rtol=1e-5, atol=1e-6)


def test_the_first_row_is_context_and_nothing_else_of_it_is_seen():
    model = small(VECTOR).eval()
    batch = batch_of(VECTOR, t=5)
    batch |= {"latent_deter": torch.randn(2, 64), "latent_stoch": torch.randint(0, 4, (2, 8), dtype=torch.int16)}
    batch |= {"stream": torch.zeros(2, dtype=torch.long), "step": torch.zeros(2, dtype=torch.long)}

    def terms(changed):
        torch.manual_seed(0)
        return model.losses(changed)

    before = terms(batch)
    for key in ("vector", "reward"):
        changed = batch | {key: batch[key].clone()}
        changed[key][:, 0] += 1
        assert all(torch.equal(before[k], v) for k, v in terms(changed).items())
    for key, other in (("latent_deter", batch["latent_deter"] + 1), ("action", (batch["action"] + 1) % 4)):
        assert not torch.equal(
            before["dyn"] + before["rec_vector"], sum(terms(batch | {key: other})[k] for k in ("dyn", "rec_vector"))
        )
    assert {key: x.shape[1] for key, x in after_context(batch).items()} == dict.fromkeys(
        ("reward", "is_first", "is_last", "is_terminal", "vector", "action"), 4
    )


def test_an_episode_that_begins_right_after_the_context_forgets_it():
    model = small(VECTOR).eval()
    batch = batch_of(VECTOR, t=4)
    batch["is_first"][:, 1] = True
    carry = {"latent_deter": torch.randn(2, 64), "latent_stoch": torch.randint(0, 4, (2, 8), dtype=torch.int16)}
    other = {"latent_deter": torch.randn(2, 64), "latent_stoch": torch.randint(0, 4, (2, 8), dtype=torch.int16)}
    one, two = (model.filter(batch | latents, sample=False) for latents in (carry, other))
    assert torch.equal(one.deter, two.deter)


def test_newer_latents_are_handed_to_the_data():
    model, written = small(VECTOR), []
    batch = batch_of(VECTOR, t=5) | {
        "latent_deter": torch.zeros(2, 64),
        "latent_stoch": torch.zeros(2, 8, dtype=torch.int16),
    }
    model._trainer = SimpleNamespace(
        log_every_n_steps=0,
        callbacks=[],
        datamodule=SimpleNamespace(write_back=lambda b, latents: written.append(latents)),
    )
    model.log_dict = model.log = lambda *args, **kwargs: None
    torch.manual_seed(0)
    model.training_step(batch, 0)
    torch.manual_seed(0)
    post = model.filter(batch)
    assert torch.equal(written[0]["deter"], post.deter) and written[0]["stoch"].shape == (2, 4, 8)
    assert torch.equal(written[0]["stoch"].long(), post.stoch.argmax(-1)) and not written[0]["deter"].requires_grad


def test_the_same_seed_and_memory_act_the_same_and_another_seed_does_not():
    model = small(PICTURE).eval()
    (one, _), (two, _) = played(model, PICTURE), played(model, PICTURE)
    assert torch.equal(one["action"], two["action"])
    torch.manual_seed(123)  # nothing is drawn from the global generator
    assert torch.equal(played(model, PICTURE)[0]["action"], one["action"])
    model.policy = lambda seed: type(model).policy(model, 1)
    assert not torch.equal(played(model, PICTURE)[0]["action"], one["action"])


@pytest.mark.parametrize(
    "space", [ActionSpace("discrete", (4,)), ActionSpace("multi_discrete", (3, 2)), ActionSpace("continuous", (2,))]
)
def test_actions_come_back_from_their_vectors(space):
    spec = ExperienceSpec({"vector": (1,)}, space)
    action = batch_of(spec, b=5, t=1)["action"][:, 0]
    back = environment_actions(action_vectors(action, torch.zeros(5, dtype=torch.bool), space), space)
    assert np.array_equal(back, action.numpy()) and back.dtype == space.dtype


def test_continuous_actions_are_clipped_as_the_recurrence_does():
    beyond = torch.tensor([[1.7, -0.2], [-3.0, 1.0]])
    clipped = torch.as_tensor(environment_actions(beyond, ActionSpace("continuous", (2,))))
    rssm = small(PICTURE).rssm
    assert clipped.tolist() == [[1.0, pytest.approx(-0.2)], [-1.0, 1.0]]
    torch.testing.assert_close(rssm.embed_actions(beyond), rssm.embed_actions(clipped))
