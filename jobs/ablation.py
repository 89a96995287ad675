"""python -m jobs.ablation CONFIG.yaml [ablation.fusions='[mean, concat]'] [ablation.seeds='[0, 1, 2]']: what each modality and fusion is worth."""

import sys
from typing import Any

from jobs.entry import run_entry, run_session, verb_parser


def main() -> dict[str, Any]:
    """Parse, train every cell of the table, print it, return where it is and its means."""
    parser = verb_parser("ablation", "The table fusion x modality subset of a data set, with intervals; trains the run first where that was not done.")
    parser.add_argument("--fresh", action="store_true", help="remove what an earlier ablation of this name left")
    arguments = parser.parse_args()

    from medley.config import load_run
    from medley.search.ablation import ablate
    from medley.search.ablation_page import ablation_text, row_name

    run = load_run(arguments.config, arguments.overrides)
    with run_session(run, arguments.address):
        result = ablate(run, fresh=arguments.fresh)
    print(ablation_text(result), file=sys.stderr)
    means = {row_name(cell): cell["relevance"]["all"][result["metric"]]["mean"] for cell in result["cells"]}
    return {**{name: result[name] for name in ("ablation", "reused", "seconds", "split", "metric")}, "means": means}


if __name__ == "__main__":
    run_entry(main)
