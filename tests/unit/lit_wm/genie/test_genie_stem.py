"""The ways from pixels to tokens."""

import pytest
import torch

from lit_wm.errors import UserError
from lit_wm.genie.stem import make_stem


@pytest.mark.parametrize(("kind", "patch"), [("linear", 4), ("convolution", 2), ("convolution", 4), ("convolution", 8)])
def test_one_token_a_patch_and_frames_by_themselves(kind, patch):
    torch.manual_seed(0)
    stem, x = make_stem(kind, 3, patch, 16), torch.rand(2, 3, 3, 16, 24)
    h = stem(x)
    assert h.shape == (2, 3, (16 // patch) * (24 // patch), 16)
    changed = x.clone()
    changed[:, 1] = 0
    other = stem(changed)
    assert torch.allclose(other[:, ::2], h[:, ::2], atol=1e-6)
    assert not torch.allclose(other[:, 1], h[:, 1], atol=1e-3)


def test_tokens_lie_where_their_patches_do():
    """A lit pixel changes the token of its patch; with convolutions those around it too, but none further away."""
    for kind, reach in (("linear", 0), ("convolution", 1)):
        torch.manual_seed(0)
        stem = make_stem(kind, 1, 4, 8)
        dark, lit = torch.zeros(2, 1, 1, 1, 24, 24)
        lit = lit.clone()
        lit[..., 9, 14] = 1  # patch (2, 3)
        changed = (stem(lit) - stem(dark)).abs().amax(-1).view(6, 6) > 1e-7
        rows, columns = changed.nonzero(as_tuple=True)
        assert changed[2, 3]
        assert ((rows - 2).abs() <= reach).all()
        assert ((columns - 3).abs() <= reach).all()


@pytest.mark.parametrize(("patch", "dim"), [(6, 16), (1, 16), (16, 12)])
def test_what_cannot_be_halved_is_refused(patch, dim):
    with pytest.raises(UserError, match=f"patch {patch} must be a power of 2 and dim {dim}"):
        make_stem("convolution", 3, patch, dim)
