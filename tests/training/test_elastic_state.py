"""A state written at any ZeRO stage by two ranks or one goes on at any stage with one rank or two: the same numbers to the bit, the same losses."""

from pathlib import Path

import pytest
import torch

from tests.training.state_ranks import FIRST, LAST, STAGES, resume_at_every_stage, save_at_every_stage, stored
from tests.training.two_ranks import TwoRanks


def summed(parts: list[dict[int, list[float]]]) -> dict[int, list[float]]:
    """Shares of the ranks → losses."""
    return {stage: [sum(shares) for shares in zip(*(part[stage] for part in parts), strict=True)] for stage in STAGES}


def test_each_rank_writes_its_own_part_of_what_is_sharded_and_a_share_of_the_rest(ranks: TwoRanks, tmp_path: Path) -> None:
    ranks(save_at_every_stage, 2, str(tmp_path))
    for stage in STAGES:
        state = stored(str(tmp_path / str(stage)))
        elements = [sum(piece.length for pieces in state.pieces.values() for piece in pieces if piece.part == part) for part in (0, 1)]
        assert sum(elements) == 3 * (21 + 20 + 10 + 6) + 12 + 4
        assert max(elements) < 0.6 * sum(elements), f"stage {stage}: {elements}"


@pytest.mark.parametrize("num_writers", [2, 1])
@pytest.mark.parametrize("num_ranks", [2, 1])
def test_every_stage_goes_on_at_every_other(ranks: TwoRanks, process_group: None, tmp_path: Path, num_writers: int, num_ranks: int) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    alone = save_at_every_stage(0, 1, str(tmp_path / "alone" if num_writers == 2 else source))
    together = summed(ranks(save_at_every_stage, 2, str(source))) if num_writers == 2 else alone
    assert list(together[0]) == pytest.approx(alone[0], abs=1e-6)
    for before in STAGES:
        arguments = (num_ranks, str(source / str(before)), str(target / str(before)))
        resumed = summed(ranks(resume_at_every_stage, *arguments)) if num_ranks == 2 else resume_at_every_stage(0, *arguments)
        written = stored(str(source / str(before)))
        for after in STAGES:
            found = stored(str(target / str(before) / str(after)))
            assert found.entries == written.entries
            assert all(torch.equal(found.tensor(name), written.tensor(name)) for name in written.entries), (before, after)
            assert len(resumed[after]) == LAST - FIRST
            if (before, num_writers) == (after, num_ranks):
                assert resumed[after] == together[before], "the same ranks at the same stage go on bit by bit"
            else:
                assert resumed[after] == pytest.approx(together[before], abs=1e-6), (before, after)
