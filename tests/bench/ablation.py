"""python -m tests.bench.ablation [--quick]: what each modality and each fusion is worth, on the demo's synthetic data and on pokemon.

`jobs.ablation` of each configuration with three seeds: the encoders are trained once, together; fusion, users and head anew for every cell.
pokemon (beside the repository) is skipped with a line where it is absent.

Figures, NDCG@10 on test:
- DATA_fused_minus_best_part: the whole model minus the best of ids alone and every single modality, the smallest of the seeds; not below 0
- synthetic_share_of_oracle_GROUP: the whole model as a share of the oracle, warm and cold items apart
- synthetic_lost_without_PART_GROUP: the loss of that share without one part
The detail has both tables.
"""

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any, get_args

from jobs.prepare import prepare_run

RAW_POKEMON = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "pokemon"
SEEDS = [0, 1, 2]
QUICK = {
    "synthetic": ["convert.num_items=200", "convert.num_users=80", "convert.interactions_per_user=40", "train.epochs=1", "ablation.seeds=[0]"],
    "pokemon": ["train.epochs=1", "ablation.seeds=[0]"],
}


def main() -> None:
    """Make the tables, print one JSON line."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.ablation", description="What each modality and each fusion is worth.")
    parser.add_argument("--quick", action="store_true", help="one epoch, one seed, no further fusions: only shows that it runs")
    quick = parser.parse_args().quick

    from medley.cluster.session import ray_session
    from medley.search.ablation import fused_minus_best_part
    from medley.search.ablation_page import ablation_text

    configs = {"synthetic": ("jobs/configs/demo.yaml", []), "pokemon": ("jobs/configs/pokemon.yaml", [f"convert.raw={RAW_POKEMON}"])}
    if not RAW_POKEMON.exists():
        print(f"skipped: pokemon, '{RAW_POKEMON}' is absent", file=sys.stderr)
        del configs["pokemon"]
    reports: dict[str, Any] = {}
    figures: dict[str, float] = {}
    for name, (config, overrides) in configs.items():
        with tempfile.TemporaryDirectory() as storage, ray_session():
            reports[name] = table_of(
                config, [f"storage={storage}", *overrides, *(QUICK[name] if quick else [f"ablation.seeds={SEEDS}"])], all_fusions=not quick
            )
        print(f"{name}\n{ablation_text(reports[name])}", file=sys.stderr)
        figures[f"{name}_fused_minus_best_part"] = min(fused_minus_best_part(reports[name], "all"))
    figures |= shares_of_oracle(reports["synthetic"])
    print(json.dumps({"bench": "ablation", "figures": figures, "detail": {"reports": reports, "num_cpus": os.cpu_count()}}))


def table_of(config: str, overrides: list[str], *, all_fusions: bool) -> dict[str, Any]:
    """Convert, prepare, ablate; the report."""
    from medley.config import load_run, override_run
    from medley.data.convert import convert
    from medley.fusion import FusionConfig
    from medley.search.ablation import ablate

    run = load_run(config, overrides)
    if all_fusions:
        kinds = [str(member.model_fields["kind"].default) for member in get_args(get_args(FusionConfig)[0])]
        run = override_run(run, {"ablation.fusions": [kind for kind in kinds if kind != run.model.fusion.kind]})
    assert run.convert is not None
    convert(run.convert, run.tables_uri)
    prepare_run(run)
    return ablate(run)


def shares_of_oracle(report: dict[str, Any]) -> dict[str, float]:
    """Of the whole model, and what is lost of them without each part."""
    own = [cell for cell in report["cells"] if cell["fusion"] == report["cells"][0]["fusion"]]
    whole = set(own[0]["parts"])
    figures = {}
    for group in ("warm", "cold"):
        oracle = report["references"]["oracle"][group]["ndcg@10"]["mean"]
        share = {tuple(cell["parts"]): cell["relevance"][group]["ndcg@10"]["mean"] / oracle for cell in own}
        figures[f"synthetic_share_of_oracle_{group}"] = share[tuple(own[0]["parts"])]
        for parts, found in share.items():
            if len(parts) == len(whole) - 1:
                (left_out,) = whole - set(parts)
                figures[f"synthetic_lost_without_{left_out}_{group}"] = figures[f"synthetic_share_of_oracle_{group}"] - found
    return figures


if __name__ == "__main__":
    main()
