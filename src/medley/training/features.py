"""The feature cache as a run sees it: which encoders it holds, with which weights, where their vectors are."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from medley.data.feature_cache import EncoderSource, EncodeSettings, encode_catalogue
from medley.data.feature_store import read_matrix
from medley.data.memory import CatalogueVectors
from medley.data.prepared import PreparedData
from medley.encoders import EncoderConfig
from medley.encoders.frozen import build_frozen
from medley.manifest import join_uri
from medley.training.assemble import Assets
from medley.training.config import GradientTrainConfig


@dataclass(frozen=True)
class FeatureCache:
    """Some encoders of a run. root: the storage's `features/`. weights: of the run to start from, by name; encoders that it lacks have their own."""

    root: str
    encoders: Mapping[str, EncoderConfig]
    weights: Mapping[str, Tensor]
    train: GradientTrainConfig
    decode_threads: int

    def encode(self, data: PreparedData, assets: Assets) -> dict[str, Any]:
        """Compute the vectors that are missing; needs a Ray session. Returns encoder → what was done.

        Tasks are as many and as large as the training workers, for which the cluster must have room anyway.
        """
        settings = EncodeSettings(self.train.min_workers, self.train.cpus_per_worker, self.decode_threads)
        results = {}
        for name in self.encoders:
            source = self._source(name, assets)
            results[name] = encode_catalogue(source, data, self._folder(source), settings)
        return results

    def find(self, data: PreparedData, assets: Assets) -> dict[str, str]:
        """encoder → the folder of its vectors; vectors that are not there, or damaged, are an InputError."""
        folders = {name: self._folder(self._source(name, assets)) for name in self.encoders}
        read_vectors(folders, self.encoders, data)
        return folders

    def _folder(self, source: EncoderSource) -> str:
        return join_uri(self.root, source.identity)

    def _source(self, name: str, assets: Assets) -> EncoderSource:
        config = self.encoders[name]
        own = {key.removeprefix(prefix): value for key, value in self.weights.items() if key.startswith(prefix := f"encoders.{name}.")}
        encoder = build_frozen(config, assets.get(name, {}), pretrained=not own)
        first = encoder.state_dict()
        state = {key: own[key] if key in own and own[key].shape == value.shape else value.clone() for key, value in first.items()}
        return EncoderSource(
            config=config,
            assets=assets.get(name, {}),
            weights=state,
            dimension=int(encoder.output_dimension),  # type: ignore[arg-type]  # every encoder's
            precision=self.train.engine.precision,
            device="cuda" if self.train.use_gpu else "cpu",
        )


def read_vectors(folders: Mapping[str, str], encoders: Mapping[str, EncoderConfig], data: PreparedData) -> CatalogueVectors:
    """The prepared set's vectors out of each encoder's folder."""
    pairs = {name: read_matrix(uri, data.identity, encoders[name].column, name) for name, uri in folders.items()}
    return CatalogueVectors({name: vectors_ND for name, (vectors_ND, _) in pairs.items()}, {name: mask_N for name, (_, mask_N) in pairs.items()})
