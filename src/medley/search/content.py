"""What a finished run's encoders and fusion make of the items: for the content baselines and the modality shares of its evaluation."""

import numpy as np
import torch

from medley.config import Run
from medley.data.memory import CatalogueVectors
from medley.data.prepared import PreparedData
from medley.fusion.weights import modality_weights
from medley.manifest import read_manifest
from medley.search.features import encode_for_trials
from medley.training.baselines import read_feature_columns
from medley.training.checkpoint import WEIGHTS_FILE
from medley.training.compare import Content
from medley.training.run import RUN_KIND
from medley.training.start import read_weights_of

ITEMS_PER_PIECE = 4096


def run_content(run: Run, data: PreparedData) -> Content:
    """Vectors of the run's own encoders (from the feature cache; needs a Ray session) and the fusion's shares.

    A run without encoders or without a network has the feature columns of the items, if there are any, and no shares.
    """
    has_network = WEIGHTS_FILE in read_manifest(run.run_uri, RUN_KIND)["files"]
    if not run.model.encoders or not has_network:
        return Content(read_feature_columns(data), {})
    vectors = encode_for_trials(run, run.run_uri, data)
    return Content(vectors, _shares(run, vectors))


@torch.no_grad()
def _shares(run: Run, vectors: CatalogueVectors) -> dict[str, np.ndarray]:
    """modality → (N,) share in each item's content vector."""
    fusion = run.model.fusion.build({name: vectors_ND.shape[1] for name, vectors_ND in vectors.vectors_ND.items()}, run.model.dimension)
    prefix = "fusion."
    fusion.load_state_dict({name.removeprefix(prefix): value for name, value in read_weights_of(run.run_uri).items() if name.startswith(prefix)})
    fusion.eval()
    pieces = []
    for start in range(0, len(next(iter(vectors.vectors_ND.values()))), ITEMS_PER_PIECE):
        piece = slice(start, start + ITEMS_PER_PIECE)
        parts, present = (
            {name: torch.from_numpy(np.array(array_N[piece])) for name, array_N in arrays.items()} for arrays in (vectors.vectors_ND, vectors.present_mask_N)
        )
        pieces.append(modality_weights(fusion, parts, present).numpy())
    weights_NM = np.concatenate(pieces)
    return {name: weights_NM[:, number] for number, name in enumerate(sorted(vectors.vectors_ND))}
