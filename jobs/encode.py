"""python -m jobs.encode CONFIG.yaml [encoder=NAME]: frozen encoders run over the prepared items once; vectors that are there are kept."""

from typing import TYPE_CHECKING, Any

from jobs.entry import run_entry, run_session, verb_parser

if TYPE_CHECKING:
    from medley.config import Run


def encode_run(run: "Run", name: str | None = None) -> dict[str, Any]:
    """Fill the feature cache for the run's encoders with `cache: true`, or for the frozen one named; needs a Ray session."""
    from medley.schema import InputError
    from medley.training.assemble import check_model, learn_assets
    from medley.training.run import feature_cache, find_prepared

    encoders = run.model.encoders
    frozen = [other for other, encoder in encoders.items() if encoder.train == "frozen"]
    names = [name] if name else [other for other in frozen if encoders[other].cache]
    if not set(names) & set(frozen):
        got = "no encoder has cache: true" if not name else f"encoder '{name}' is trained" if name in encoders else f"there is no encoder '{name}'"
        raise InputError(got, f"a frozen encoder ({', '.join(frozen) or 'this configuration has none'})", "set its train: frozen and cache: true")
    data = find_prepared(run)
    check_model(run.model, run.loss, data)
    assets = learn_assets({other: encoders[other] for other in names}, data)
    return feature_cache(run, names).encode(data, assets)


def main() -> dict[str, Any]:
    """Parse, encode, return what was computed for each encoder."""
    parser = verb_parser("encode", "Vectors of frozen encoders → the feature cache. encoder=NAME: only this one.")
    arguments = parser.parse_args()

    from medley.config import load_run

    names = [override.removeprefix("encoder=") for override in arguments.overrides if override.startswith("encoder=")]
    run = load_run(arguments.config, [override for override in arguments.overrides if not override.startswith("encoder=")])
    with run_session(run, arguments.address):
        return {"encoders": encode_run(run, names[-1] if names else None)}


if __name__ == "__main__":
    run_entry(main)
