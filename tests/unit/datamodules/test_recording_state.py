"""A state of a recording held against what its folder holds now."""

import pytest

from datamodules.experience import ExperienceError
from datamodules.recording_folder import next_to
from datamodules.recording_state import hash_of_start, holds_more, lost
from datamodules.shards import ShardWriter

OPTIONS = {"environment": {"id": "made"}, "policy": "agent", "seed": 0, "shard_steps": 40, "holdout": 0}


@pytest.fixture
def recorded(tmp_path, made_spec, make_episode):
    """``recorded(numbers, resume)``: writes such episodes to one folder; answers it and the state after each of them."""

    def record(numbers, resume=None, close=True):
        writer = ShardWriter(tmp_path / "data", made_spec, **OPTIONS, resume=resume)
        states = [writer.state()]
        for number in numbers:
            writer.write_episode(make_episode(made_spec, number, 15))
            states.append(writer.state())
        if close:
            writer.close()
        return tmp_path / "data", states

    return record


def test_a_state_is_whole_until_it_is_cut_off_and_only_the_last_is_all_there_is(recorded):
    root, states = recorded(range(8))
    assert len(states[8]["finished"]) == 2 and states[8]["open"], "finished by close() alone"
    assert not any(lost(root, state) for state in states)
    assert [holds_more(root, state) for state in states] == [True] * 8 + [False]
    recorded([], resume=states[4], close=False)
    assert not any(lost(root, state) for state in states[:5]) and all(lost(root, state) for state in states[5:])


def test_the_same_names_and_sizes_with_other_episodes_are_found_out_and_refused(recorded, made_spec):
    root, states = recorded(range(8))
    recorded([9, 8, 7, 6, 5, 4], resume=states[2])  # its first shard was open then, and ends otherwise
    assert [bool(lost(root, state)) for state in states] == [False] * 3 + [True] * 6
    assert "train-000000.tar holds other episodes than it did" in lost(root, states[8])
    before = {path: path.read_bytes() for path in root.iterdir()}
    with pytest.raises(
        ExperienceError, match=r"holds other episodes than it did: the recording cannot be gone on with"
    ):
        ShardWriter(root, made_spec, **OPTIONS, resume=states[8])
    assert {path: path.read_bytes() for path in root.iterdir()} == before, "what is refused is left alone"


def test_the_hash_goes_on_from_where_a_writer_was_taken_up(recorded):
    _, states = recorded(range(5))
    root, again = recorded([3, 4], resume=states[3])
    assert again[2]["sha256"] == states[5]["sha256"] and not lost(root, states[5])


def test_a_hash_of_the_start_is_that_of_these_bytes(tmp_path):
    (tmp_path / "long").write_bytes(bytes(range(256)) * 10_000)
    (tmp_path / "short").write_bytes((bytes(range(256)) * 10_000)[:1_500_000])
    assert hash_of_start(tmp_path / "long", 1_500_000).digest() == hash_of_start(tmp_path / "short", 2_000_000).digest()


def test_the_next_name_that_is_free(tmp_path):
    names = []
    for _ in range(3):
        names.append(next_to(tmp_path / "episodes").name)
        (tmp_path / names[-1]).mkdir()
    assert names == ["episodes", "episodes-2", "episodes-3"]
