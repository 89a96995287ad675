"""What reads histories, draws of the plan and pairs of modalities: still one loss curve for any stage and world size."""

from collections.abc import Callable
from typing import Any

import pytest

from medley.config import Run, override_run
from medley.search.features import encode_for_base_run
from medley.training.run import find_prepared, fit
from tests.training.test_fit import losses_of

pytestmark = pytest.mark.long

HISTORIES = {
    "model.fusion": {"kind": "late"},
    "model.users": {"kind": "sum", "parts": [{"kind": "id"}, {"kind": "transformer", "history_length": 4, "num_layers": 1}, {"kind": "autoencoder"}]},
    "model.head": {"kind": "fm"},
    "loss": {"kind": "in_batch_softmax", "temperature": 1.0, "num_uniform_negatives": 8, "alignment": {"weight": 0.1}},
}
GRAPHS = {
    "model.encoders.image.cache": True,
    "model.fusion": {"kind": "attention", "num_heads": 2},
    "model.item_id": {"dropout": 0.5, "neighbours": {"num_neighbours": 3}},
    "model.propagation": {"num_layers": 2},
    "model.head": {"kind": "mf", "cosine": True, "learned_scale": True},
    "loss": {"kind": "bpr"},
}
KINDS: dict[str, dict[str, Any]] = {"histories": HISTORIES, "graphs": GRAPHS}


@pytest.mark.usefixtures("ray_session")
@pytest.mark.parametrize("kinds", KINDS)
def test_losses_do_not_depend_on_stage_and_world_size(tiny_run: Callable[..., Run], kinds: str) -> None:
    found = {}
    for workers, stage in ((1, 0), (2, 3)):
        run = override_run(tiny_run(f"{kinds}-{stage}-of-{workers}", epochs=1, workers=workers, engine={"zero_stage": stage}), KINDS[kinds])
        encode_for_base_run(run, find_prepared(run))
        fit(run)
        found[workers] = losses_of(run)
    print(max(abs(found[1][step] - found[2][step]) for step in found[1]))
    assert found[2] == pytest.approx(found[1], rel=1e-5)
