"""The vocabularies and statistics that a run's encoders learned, kept in its folder."""

from medley.manifest import join_uri, read_bytes, read_json, write_bytes, write_json
from medley.training.assemble import Assets


def write_assets(run_uri: str, assets: Assets) -> None:
    """Write them below `assets/`, the list of them last."""
    for name, files in assets.items():
        for file, content in files.items():
            write_bytes(join_uri(run_uri, "assets", name, file), content)
    write_json(join_uri(run_uri, "assets", "done.json"), {name: sorted(files) for name, files in assets.items()})


def read_assets_of(run_uri: str) -> Assets:
    """What `write_assets` wrote for a run."""
    names = read_json(join_uri(run_uri, "assets", "done.json"))
    return {name: {file: read_bytes(join_uri(run_uri, "assets", name, file)) for file in files} for name, files in names.items()}
