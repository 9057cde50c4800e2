"""The dynamics: what a prediction may see, what the loss counts, and a sampler that is right with and without cache."""

import itertools
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from lit_wm.genie import dynamics
from lit_wm.genie.dynamics import DynamicsModel
from lit_wm.genie.dynamics_settings import DynamicsSettings
from lit_wm.genie.maskgit import draw_mask, draw_tokens, kept_counts, maskgit_sample
from lit_wm.genie.rollout import kept_frames, rollout

SETTINGS = DynamicsSettings(dim=16, heads=2, ffn=32, blocks=2, sampling_steps=4, temperature=1.0)
VOCABULARY, N, W = 12, 6, 6


@pytest.fixture(
    params=[{}, {"know_codes": True}, {"neighbours": True}, {"action": "prepend"}, {"qk_norm": True}],
    ids=lambda options: next(iter(options), "paper"),
)
def model(request):
    torch.manual_seed(0)
    settings = replace(SETTINGS, **request.param)
    m = DynamicsModel((2, 3), W, torch.randn(VOCABULARY, 5), 4, settings).eval()
    torch.nn.init.normal_(m.input.head.weight)  # decided opinions, so that a wrong input would show
    return m


def inputs(t=W, b=2, seed=0):
    g = torch.Generator().manual_seed(seed)
    return torch.randint(0, VOCABULARY, (b, t, N), generator=g), torch.randn(b, t - 1, 4, generator=g)


def test_a_prediction_sees_the_past_the_action_and_what_is_left_of_its_frame(model):
    tokens, actions = inputs()
    mask = torch.zeros_like(tokens, dtype=torch.bool)
    mask[:, 3] = True
    logits = model(tokens, actions, mask)
    assert logits.shape == (2, W, N, VOCABULARY)

    changed = tokens.clone()
    changed[:, 3:] = (tokens[:, 3:] + 1) % VOCABULARY  # the target frame and the future
    assert torch.equal(model(changed, actions, mask)[:, :4], logits[:, :4])
    for what, other in (
        ("the frame before", (_edit(tokens, 2), actions)),
        ("the action that leads here", (tokens, _edit(actions, 2))),
    ):
        assert (model(*other, mask)[:, 3] != logits[:, 3]).any(), what
    later = model(tokens, _edit(actions, 3), mask)  # the action after frame 3
    assert torch.equal(later[:, :4], logits[:, :4])
    assert (later[:, 4] != logits[:, 4]).any()


def test_tokens_with_equal_code_vectors_are_one_where_codes_are_known():
    torch.manual_seed(0)
    codebook = torch.randn(VOCABULARY, 5)
    codebook[7] = codebook[3]
    m = DynamicsModel((2, 3), W, codebook, 4, replace(SETTINGS, know_codes=True)).eval()
    torch.nn.init.zeros_(m.input.head.weight), torch.nn.init.zeros_(m.input.head.bias)
    tokens, actions = inputs()
    mask = torch.zeros_like(tokens, dtype=torch.bool)
    mask[:, 3] = True
    logits = m(tokens, actions, mask)
    assert torch.equal(m(torch.where(tokens == 3, 7, tokens), actions, mask), logits)
    torch.testing.assert_close(logits[..., 3], logits[..., 7])
    m.input.see_codes(2 * codebook + 1)  # scale and place of the codebook do not matter
    torch.testing.assert_close(m(tokens, actions, mask), logits, rtol=1e-4, atol=1e-5)


def _edit(x, t):
    x = x.clone()
    x[:, t] = (x[:, t] + 1) % VOCABULARY if x.dtype == torch.int64 else x[:, t] + 1
    return x


def test_cross_entropy_of_masked_tokens_only_against_the_unmasked_targets(model):
    tokens, actions = inputs()
    torch.manual_seed(1)
    mask = draw_mask(tuple(tokens.shape), torch.device("cpu"))
    nats, right = model.masked_loss(tokens, actions, mask)
    logits = model(tokens, actions, mask)
    everywhere = F.cross_entropy(logits.movedim(-1, 1), tokens, reduction="none")
    assert nats.shape == (int(mask.sum()),)
    assert torch.allclose(nats, everywhere[mask], atol=1e-5)
    assert torch.equal(right, (logits.argmax(-1) == tokens)[mask])


def test_mask_rates():
    torch.manual_seed(0)
    mask = draw_mask((400, 5, 50), torch.device("cpu"))
    assert not mask[:, 0].any()
    rate = mask[:, 1:].float().mean((1, 2))
    assert 0.4 < rate.min() < 0.55
    assert 0.95 < rate.max() <= 1
    assert rate.mean() == pytest.approx(0.75, abs=0.02)
    assert rate.std() == pytest.approx(0.5 / 12**0.5, abs=0.02)  # one rate per clip


def test_frames_left_whole():
    torch.manual_seed(0)
    mask = draw_mask((400, 5, 50), torch.device("cpu"), whole_frames=0.5)
    whole = ~mask[:, 1:].any(2)
    assert not mask[:, 0].any() and mask.any((1, 2)).all()
    assert whole[:, :-1].float().mean() == pytest.approx(0.5, abs=0.03)
    rate = mask[:, 1:].float().sum((1, 2)) / (~whole).sum(1) / 50  # of the frames that are masked
    assert 0.4 < rate.min() < 0.6 and rate.mean() == pytest.approx(0.75, abs=0.02)
    certain = draw_mask((7, 3, 50), torch.device("cpu"), whole_frames=0.9999)
    assert not certain[:, :2].any() and certain[:, 2].any(1).all()


def test_kept_counts():
    assert kept_counts(16, 4) == [1, 5, 10, 16]
    assert kept_counts(9, 1) == [9]
    for tokens, steps in ((64, 25), (4, 25), (100, 8)):
        counts = kept_counts(tokens, steps)
        assert counts == sorted(set(counts))
        assert counts[0] > 0
        assert counts[-1] == tokens
        assert len(counts) <= steps


def test_temperature_widens_the_law_and_zero_is_greedy():
    logits = torch.randn(5, generator=torch.Generator().manual_seed(0)).expand(4000, 5)
    generator = torch.Generator().manual_seed(1)
    entropies = []
    for temperature in (0.5, 1.0, 2.0):
        tokens, log_probability = draw_tokens(logits, temperature, generator)
        law = (logits[0] / temperature).softmax(-1)
        assert torch.allclose(torch.bincount(tokens, minlength=5) / 4000, law, atol=0.03)
        assert torch.allclose(log_probability.exp(), law[tokens], atol=1e-6)
        entropies.append(float(torch.special.entr(law).sum()))
    assert entropies == sorted(entropies)
    tokens, log_probability = draw_tokens(logits, 0.0)
    assert (tokens == logits[0].argmax()).all()
    assert torch.allclose(log_probability.exp(), logits[0].softmax(-1).max())


def check_temperature(model):
    """That of the settings multiplies what is asked for; of either kind of dynamics."""
    tokens, actions = inputs()
    read = model.read(tokens[:, :3], actions[:, :3], 0, None)

    def drawn(of_settings, asked):
        model.settings = replace(model.settings, temperature=of_settings)
        return model.sample(read, actions[:, 2:3], asked, torch.Generator().manual_seed(3))

    assert torch.equal(drawn(2.0, 1.5), drawn(1.0, 3.0)) and torch.equal(drawn(0.0, 1.0), drawn(1.0, 0.0))
    assert not torch.equal(drawn(50.0, 1.0), drawn(1.0, 1.0)), "all tokens nearly alike"


def test_the_settings_temperature_multiplies_what_is_asked_for(model):
    check_temperature(model)


def test_frames_are_left_whole_as_the_settings_say(model, monkeypatch):
    seen = []
    monkeypatch.setattr(dynamics, "draw_mask", lambda *given: (seen.append(given), draw_mask(*given))[1])
    model.settings = replace(model.settings, whole_frames=0.3)
    model.loss(*inputs())
    assert [given[2] for given in seen] == [0.3]


def test_a_settled_token_stays_and_the_surest_settle_first():
    sure = torch.tensor([0.0, 3.0, 1.0, 2.0])  # place 1 is the surest, then 3, 2, 0
    seen = []

    def logits_of(tokens, mask):
        seen.append((tokens.clone(), mask.clone()))
        return torch.stack([sure, torch.zeros(4)], -1).expand(1, 4, 2) * (1 if len(seen) == 1 else -1)

    result = maskgit_sample(logits_of, (1, 4), steps=4, temperature=0.0)
    open_places = [mask[0].nonzero()[:, 0].tolist() for _, mask in seen]
    assert open_places[0] == [0, 1, 2, 3]
    assert all(set(b) < set(a) for a, b in itertools.pairwise(open_places))
    assert 1 not in open_places[1]
    assert result[0, 1] == 0  # settled at the first step, although the later logits say 1
    assert (result[0, open_places[1]] == 1).sum() >= 2


def uncached(model, tokens, past_actions, actions, temperature, generator):
    """The sampler as the paper describes it: the whole clip through the model at every step."""
    clip = tokens
    for k in range(actions.shape[1]):
        led = torch.cat([past_actions, actions[:, : k + 1]], 1)
        clip = clip[:, -kept_frames(clip.shape[1], W) :]
        led = led[:, -clip.shape[1] :]

        def logits_of(frame, mask, clip=clip, led=led):
            masks = torch.cat([torch.zeros_like(clip, dtype=torch.bool), mask[:, None]], 1)
            return model(torch.cat([clip, frame[:, None]], 1), led, masks)[:, -1]

        frame = maskgit_sample(logits_of, (len(tokens), N), SETTINGS.sampling_steps, temperature, generator)
        clip = torch.cat([clip, frame[:, None]], 1)
        tokens = torch.cat([tokens, frame[:, None]], 1)
    return tokens[:, -actions.shape[1] :]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("context", [1, 3, W])
def test_cached_rollout_equals_the_uncached_one(model, temperature, context):
    """Also beyond the window: with 3 frames of context, 6 of window and 5 to sample, the oldest are dropped on the way."""
    tokens, past = inputs(context)
    actions = torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        a = rollout(model, tokens, past, actions, temperature, torch.Generator().manual_seed(4))
        b = uncached(model, tokens, past, actions, temperature, torch.Generator().manual_seed(4))
    assert a.shape == (2, 5, N)
    assert torch.equal(a, b)


def test_a_rollout_obeys_its_generator(model):
    tokens, past = inputs(3)
    actions = torch.zeros(2, 4, 4)
    a, b, c = (rollout(model, tokens, past, actions, 4.0, torch.Generator().manual_seed(s)) for s in (1, 1, 2))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)


def test_parameters_in_closed_form(model):
    d = 16
    block = 2 * (4 * d * d + 4 * d) + (2 * d * 32 + 32 + d) + 6 * d
    known = model.settings.know_codes
    tokens_in, codes_out = (5 * d + d, d * 5 + 5) if known else (VOCABULARY * d, 0)
    around = 9 * d * d + d if model.settings.neighbours else 0
    normed = 4 * 2 * (d // 2) if model.settings.qk_norm else 0  # queries and keys of a head, four attentions
    expected = around + normed + 2 * block + 2 * 2 * d + tokens_in + codes_out + d + (4 * d + d)
    expected += d * VOCABULARY + VOCABULARY
    assert sum(p.numel() for p in model.parameters()) == expected
