"""Playing with everything cached is imagining, frame by frame."""

import numpy as np
import pytest
import torch

from datamodules.experience import ActionSpace, ExperienceSpec
from lit_wm.contract import at
from lit_wm.errors import UserError
from lit_wm.genie import GenieModule
from lit_wm.genie.play_session import PlaySession

SPEC = ExperienceSpec({"frames": (16, 16, 3)}, ActionSpace("discrete", (5,)))
CODER = {"patch": 4, "dim": 16, "heads": 2, "ffn": 32, "encoder_blocks": 1, "decoder_blocks": 2}
DYNAMICS = {"dim": 16, "heads": 2, "ffn": 32, "blocks": 2, "temperature": 1.0}
W = 8
KINDS = {
    "maskgit": {"dynamics": {**DYNAMICS, "sampling_steps": 3}},
    "autoregressive": {"dynamics": {**DYNAMICS, "kind": "autoregressive"}},
    "c_vivit": {"tokenizer": {**CODER, "codes": 64, "latent_dim": 8, "kind": "c_vivit"}},
    "vit": {"tokenizer": {**CODER, "codes": 64, "latent_dim": 8, "kind": "vit"}},
    "vectors": {"lam": {**CODER, "latent_dim": 8, "codebook": "vae"}},
}


def world(kind):
    torch.manual_seed(0)
    settings = {
        "tokenizer": {**CODER, "codes": 64, "latent_dim": 8},
        "lam": {**CODER, "latent_dim": 8},
        "dynamics": {**DYNAMICS, "sampling_steps": 3},
    }
    m = GenieModule(SPEC.to_dict(), frames=W, order="joint", **(settings | KINDS[kind])).eval()
    for weight in (m.dynamics.input.head.weight, m.dynamics.input.action_in.weight, m.tokenizer.patch_out.weight):
        torch.nn.init.normal_(weight)
    frames = np.random.default_rng(0).integers(0, 256, (2, 6, 3, 16, 16), np.uint8)
    return m, {"frames": torch.from_numpy(frames)}


@pytest.mark.parametrize("kind", KINDS)
def test_playing_equals_imagining(kind):
    m, batch = world(kind)
    state = at(m.observe(batch), 2)  # remembers 3 frames: the window of 8 is full after 5 steps
    steps = 11
    codes = m.infer_actions(batch)[:, [0, 1, 2, 3, 4, 3, 2, 1, 0, 1, 2]]
    imagined = m.imagine(state, codes, generator=torch.Generator().manual_seed(1))
    pictures = m.decode(imagined)[:, 0]
    session, generator = PlaySession(m, state), torch.Generator().manual_seed(1)
    played = [session.step(codes[:, k], generator=generator) for k in range(steps)]
    tokens = imagined["tokens"][:, 0, :, -1]
    assert torch.equal(session.window.tokens_btn[:, -3:], tokens[:, -3:]), "beyond the window, too"
    torch.testing.assert_close(torch.stack(played[:5], 1), pictures[:, :5], atol=1e-5, rtol=0)
    assert played[10].shape == (2, 3, 16, 16)
    with torch.no_grad():
        remembered = m.tokenizer.decode(session.window.tokens_btn)[:, -1]
    torch.testing.assert_close(played[10], remembered, atol=1e-5, rtol=0)


def test_only_what_is_new_is_computed():
    """The dynamics reads one frame a step and the decoder draws one, but for every second one, when the window moves."""
    m, batch = world("maskgit")
    session = PlaySession(m, at(m.observe(batch), 3))
    read, drawn = [], []
    refined = []
    m.dynamics.transformer.register_forward_pre_hook(lambda _, given: refined.append(given[0].shape[1]))
    step = m.dynamics.transformer.step
    m.dynamics.transformer.step = lambda x, past: read.append(x.shape[1]) or step(x, past)
    decode = m.tokenizer.decode_on
    m.tokenizer.decode_on = lambda x, past: drawn.append(x.shape[1]) or decode(x, past)
    for _ in range(9):
        session.step(torch.tensor([1, 2]))
    assert read == [4, 1, 1, 1, 6, 1, 6, 1, 6]
    assert refined == [1] * 3 * 9
    assert drawn == [5, 1, 1, 1, 7, 1, 7, 1, 7]


def test_a_branch_goes_its_own_way():
    m, batch = world("maskgit")
    session = PlaySession(m, at(m.observe(batch), 2))
    session.step(torch.tensor([1, 2]), generator=torch.Generator().manual_seed(0))
    other = session.branch()
    ways = [(session, 3), (other, 5), (session, 3), (other, 5)]
    played = [s.step(torch.tensor([c, c]), generator=torch.Generator().manual_seed(1)) for s, c in ways]
    assert not torch.equal(played[0], played[1])
    alone = PlaySession(m, at(m.observe(batch), 2))
    alone.step(torch.tensor([1, 2]), generator=torch.Generator().manual_seed(0))
    for expected in played[1::2]:
        picture = alone.step(torch.tensor([5, 5]), generator=torch.Generator().manual_seed(1))
        assert torch.equal(picture, expected)


def test_mistakes():
    m, batch = world("maskgit")
    observed = m.observe(batch)
    mixed = {key: torch.stack([x[0, 1], x[1, 4]]) for key, x in observed.items()}
    with pytest.raises(UserError, match="remember equally many frames"):
        PlaySession(m, mixed)
    with pytest.raises(UserError, match=r"codes must lie in 0\.\.7"):
        PlaySession(m, at(observed, 1)).step(torch.tensor([0, 8]))
