"""Two ranks that act and learn together: each with environments of its own, the same weights on both, and all of it resumed."""

import another_process
import pytest
import tiny_online

from datamodules.shards import verify


def run(folder, steps, resume=None):
    another_process.run_as_two_ranks(tiny_online.fit, folder, steps, devices=2, resume=resume)


@pytest.mark.slow
def test_two_ranks_act_apart_learn_together_and_are_resumed(tmp_path):
    run(tmp_path / "whole", 9)
    whole = [tiny_online.seen(tmp_path / "whole", rank) for rank in (0, 1)]
    assert [entry["step"] for entry in whole[0]] == list(range(1, 10))
    for one, two in zip(*whole, strict=True):
        assert one["env_steps"] == two["env_steps"] and one["env_steps"] % (2 * 3) == 0, (
            "of both ranks, 3 environments each"
        )
        assert one["weights"] == two["weights"] and one["batch"] != two["batch"] and one["replay"] != two["replay"]
    drawn = [[entry["places"] for entry in rank] for rank in whole]
    assert drawn[0] != drawn[1], "what is new comes from the same places on both, what is drawn at random does not"
    assert verify(tmp_path / "whole" / "episodes").data_hash != verify(tmp_path / "whole" / "episodes_rank1").data_hash
    run(tmp_path / "parts", 6)
    run(tmp_path / "parts", 9, resume=tmp_path / "parts" / "checkpoints" / "last.ckpt")
    for rank in (0, 1):
        assert tiny_online.seen(tmp_path / "parts", rank) == whole[rank]
