"""Where things are on a map of tokens."""

import torch

from lit_wm.nn.moments import spatial_moments


def test_spatial_moments_read_a_place_linearly():
    grid = (4, 5)
    lit = torch.eye(20).unsqueeze(-1)  # one channel, lit at each place in turn
    x, y = spatial_moments(lit, grid).unbind(-1)
    column, row = torch.arange(20) % 5, torch.arange(20) // 5
    for moment, place in ((x, column), (y, row)):
        place = place.double() - place.double().mean()
        scaled = moment.double() / moment.double().std() * place.std()
        torch.testing.assert_close(scaled, place, rtol=1e-5, atol=1e-6)
