"""The vectors of the whole catalogue that light trials train on: every encoder's, out of the feature cache."""

from medley.config import Run
from medley.data.memory import CatalogueVectors
from medley.data.prepared import PreparedData
from medley.training.assemble import learn_assets
from medley.training.features import read_vectors
from medley.training.run import feature_cache, read_assets_of


def encode_for_trials(run: Run, weights_of: str | None, data: PreparedData) -> CatalogueVectors:
    """The vectors of all of a run's encoders, with the weights of the finished run `weights_of`, or their first ones, computed where they are missing.

    Needs a Ray session. Encoders that the run trains count as frozen here.
    """
    assets = read_assets_of(weights_of) if weights_of else learn_assets(run.model.encoders, data)
    encoded = feature_cache(run, list(run.model.encoders), weights_of).encode(data, assets)
    return read_vectors({name: result["features"] for name, result in encoded.items()}, run.model.encoders, data)


def encode_for_base_run(run: Run, data: PreparedData) -> None:
    """The vectors that a base run reads: of its encoders with `cache: true`."""
    cached = {name: encoder for name, encoder in run.model.encoders.items() if encoder.cache}
    feature_cache(run).encode(data, learn_assets(cached, data))
