"""FeatureWriter: the clips of all batches, without the rows that only pad a rank's last one."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from lit_wm.callbacks.features import FeatureWriter


@pytest.mark.parametrize(("ranks", "name"), [(1, "features_test.npz"), (2, "features_test_rank1.npz")])
def test_padding_is_left_out_and_every_rank_has_its_file(tmp_path, ranks, name):
    trainer = SimpleNamespace(global_rank=ranks - 1, world_size=ranks)
    writer = FeatureWriter(tmp_path / "run")
    features_ntd = torch.randn(5, 3, 2)
    for rows, weight in ((slice(0, 3), [1, 1, 1]), (slice(3, 5), [1, 0])):
        batch = {
            "weight": torch.tensor(weight, dtype=torch.float32),
            "episode": torch.arange(5)[rows],
            "start": 10 * torch.arange(5)[rows],
        }
        writer.on_predict_batch_end(trainer, None, features_ntd[rows].bfloat16(), batch, 0)
    writer.on_predict_end(trainer, None)
    written = np.load(tmp_path / "run" / name)
    np.testing.assert_array_equal(written["features"], features_ntd[:4].bfloat16().float().numpy())
    assert written["episode"].tolist() == [0, 1, 2, 3] and written["start"].tolist() == [0, 10, 20, 30]
    assert [file.name for file in (tmp_path / "run").iterdir()] == [name]
