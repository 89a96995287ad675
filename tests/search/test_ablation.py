"""The table fusion × modality subset: which cells it has, that a planted modality shows in it, that the page is made."""

from pathlib import Path
from typing import Any

import pytest

from medley.config import Run, make_run, override_run
from medley.schema import InputError
from medley.search.ablation import IDS, ablate, fused_minus_best_part, make_cells
from medley.search.ablation_page import ablation_page, ablation_text

ENCODERS = {"text": {"kind": "subword", "vocabulary_size": 100, "dimension": 6}, "image": {"kind": "resnet", "side_pixels": 16, "width": 8}}


def a_run(**changes: Any) -> Run:
    return override_run(make_run({"name": "a", "model": {"encoders": ENCODERS}, "train": {"kind": "gradient"}}, "test"), changes)


def test_the_own_fusion_meets_every_subset_and_others_only_what_there_is_to_fuse() -> None:
    cells = make_cells(a_run(**{"ablation.fusions": ["mean"]}))
    assert [cell.parts for cell in cells if cell.fusion == "gated"] == [
        ("image", "text", IDS),
        ("image",),
        ("text",),
        (IDS,),
        ("image", IDS),
        ("text", IDS),
        ("image", "text"),
    ]
    assert [cell.parts for cell in cells if cell.fusion == "mean"] == [("image", "text", IDS), ("image", "text")]


def test_a_model_without_ids_has_no_cells_with_them() -> None:
    cells = make_cells(a_run(**{"model.item_id": None}))
    assert [cell.parts for cell in cells] == [("image", "text"), ("image",), ("text",)]


def test_a_cell_is_the_run_without_the_other_parts() -> None:
    run = a_run(**{"model.fusion": {"kind": "gated", "modality_dropout": 0.3}, "ablation.fusions": ["mean"]})
    cells = {cell.name: cell.run_of(run, 7) for cell in make_cells(run)}
    assert cells["gated: text + ids"].model.encoders.keys() == {"text"}
    assert cells["gated: text + ids"].model.item_id == run.model.item_id
    assert cells["gated: text"].model.item_id is None
    assert cells["gated: text"].model.fusion == run.model.fusion  # with its settings
    assert cells["mean: image + text"].model.fusion.kind == "mean"
    assert cells["gated: ids"].model.encoders == {}
    assert {cell.seed for cell in cells.values()} == {7}


def test_what_cannot_be_left_out_is_refused() -> None:
    with pytest.raises(InputError, match="model.encoders is empty; expected at least one modality to leave out"):
        make_cells(a_run(**{"model.encoders": {}}))
    with pytest.raises(InputError, match="'ablation': 'model.fusion.kind' is 'sum'"):
        make_cells(a_run(**{"ablation.fusions": ["sum"]}))[-1].run_of(a_run(), 0)


def cell(parts: list[str], by_seed: list[float]) -> dict[str, Any]:
    estimate = {"mean": sum(by_seed) / len(by_seed), "low": 0.1, "high": 0.6, "num_users": 9}
    groups = {group: {"ndcg@10": estimate} for group in ("all", "warm", "cold")}
    difference = {"all": {"ndcg@10": {**estimate, "p_value": 0.5}}}
    return {"fusion": "gated", "parts": parts, "relevance": groups, "minus_whole": difference, "by_seed": {"all": by_seed}}


REPORT = {
    "split": "test",
    "metric": "ndcg@10",
    "num_users": 9,
    "seeds": [0, 1],
    "cells": [cell(["<b>", IDS], [0.5, 0.4]), cell(["<b>"], [0.3, 0.1]), cell([IDS], [0.2, 0.45])],
    "references": {"popularity": cell([], [0.1])["relevance"]},
}


def test_fusing_is_measured_against_the_best_single_part_of_each_seed() -> None:
    assert list(fused_minus_best_part(REPORT, "all")) == pytest.approx([0.2, -0.05])


def test_the_table_is_readable_and_its_names_are_text() -> None:
    assert "gated: <b> + ids 0.4500 [0.1000, 0.6000] 0.4500" in " ".join(ablation_text(REPORT).split())
    page = ablation_page("a", REPORT)
    assert "<b>" not in page.replace('<b style="', "")
    assert "gated: &lt;b&gt; + ids" in page


@pytest.mark.long
def test_a_table_is_made_once_and_refused_for_other_settings(ray_session: None, tiny_prepared: str, tiny_tables: str, tmp_path: Path) -> None:
    run = make_run(
        {
            "storage": str(tmp_path),
            "name": "tiny",
            "inputs": {"prepared": tiny_prepared, "tables": tiny_tables},
            "model": {"dimension": 8, "encoders": {"text": ENCODERS["text"]}},
            "loss": {"kind": "in_batch_softmax", "temperature": 1.0},
            "train": {"kind": "gradient", "epochs": 1, "micro_batch_size": 64, "num_micro_batches": 1},
            "ablation": {"seeds": [0, 1]},
        },
        "test",
    )
    made = ablate(run)
    assert [found["parts"] for found in made["cells"]] == [["text", "ids"], ["text"], ["ids"]]
    assert all(len(found["by_seed"]["all"]) == 2 for found in made["cells"])
    assert made["cells"][0]["minus_whole"]["all"]["ndcg@10"]["mean"] == 0
    assert set(made["references"]) == {"popularity", "oracle"}
    assert Path(made["ablation"], "report.html").exists()
    assert ablate(run)["reused"]
    with pytest.raises(InputError, match="ablation 'tiny' in .* was made with other settings"):
        ablate(override_run(run, {"ablation.seeds": [0]}))
