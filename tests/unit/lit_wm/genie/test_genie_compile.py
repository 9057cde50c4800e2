"""``compile: true`` changes the time an update takes and nothing else."""

import copy

import pytest
import torch
from lightning import Callback
from test_genie_module import CODER, fit, model


class Losses(Callback):
    def __init__(self):
        self.seen = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.seen.append(outputs["loss"].item())


def test_every_block_is_compiled_where_it_is_asked_for():
    for asked in (True, False):
        m = model(compile=asked)
        m.configure_model()
        assert {block._compiled_call_impl is not None for block in m.sharded_blocks()} == {asked}
        copied = copy.deepcopy(m)
        assert copied.state_dict().keys() == model().state_dict().keys(), "checkpoints are alike"


@pytest.mark.slow
def test_on_a_cpu_compiled_blocks_learn_the_same():
    seen, one_block = {}, {**CODER, "codes": 64, "latent_dim": 8, "encoder_blocks": 0}
    for asked in (True, False):
        losses, m = Losses(), model(order="tokenizer", tokenizer=one_block, compile=asked)
        fit(m, 3, callbacks=[losses])
        seen[asked] = losses.seen, m.state_dict()
    assert seen[True][0] == pytest.approx(seen[False][0], rel=1e-4) and len(seen[True][0]) == 3
    for name, value in seen[False][1].items():
        torch.testing.assert_close(seen[True][1][name], value, rtol=1e-3, atol=1e-4, msg=name)
