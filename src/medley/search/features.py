"""The feature cache: every encoder's vectors of the whole catalogue, computed once for all trials of a search.

features/FINGERPRINT/ENCODER.safetensors   vectors_ND float32 (zeros where the modality is missing), present_mask_N bool
features/FINGERPRINT/manifest.json
"""

import logging
from typing import Any

import torch
from safetensors.torch import load, save

from medley.config import Run, dump_run, make_run
from medley.data.memory import CatalogueVectors
from medley.data.prepared import PreparedData
from medley.index.embed import embed_modalities
from medley.manifest import find_manifest, fingerprint, join_uri, read_bytes, read_manifest, staged_folder, verify_files, write_bytes
from medley.training.assemble import assemble_model, assemble_stream, learn_assets, make_plan
from medley.training.checkpoint import load_matching_weights
from medley.training.run import RUN_KIND, read_assets_of, read_weights_of

logger = logging.getLogger(__name__)

FEATURES_KIND = "features"


def cached_vectors(run: Run, weights_of: str | None, data: PreparedData) -> CatalogueVectors:
    """The vectors of a run's encoders, with the weights of the finished run `weights_of`, or their first ones; needs a Ray session."""
    weights = read_manifest(weights_of, RUN_KIND)["fingerprint"] if weights_of else None
    identity = fingerprint(FEATURES_KIND, data.identity, dump_run(run)["model"]["encoders"], weights, run.seed)
    uri = join_uri(run.storage, "features", identity)
    if find_manifest(uri) is None:
        _write(run, weights_of, data, uri, identity)
    verify_files(uri, read_manifest(uri, FEATURES_KIND))
    tensors = {name: load(read_bytes(join_uri(uri, f"{name}.safetensors"))) for name in run.model.encoders}
    return CatalogueVectors(
        {name: part["vectors_ND"].numpy() for name, part in tensors.items()}, {name: part["present_mask_N"].numpy() for name, part in tensors.items()}
    )


def _write(run: Run, weights_of: str | None, data: PreparedData, uri: str, identity: str) -> None:
    """On a GPU in a Ray task, since the process that drives a search often has none; otherwise here."""
    if not run.train.use_gpu:
        write_vectors(dump_run(run), weights_of, data.uri, uri, identity)
        return
    import ray

    task = ray.remote(num_cpus=run.train.cpus_per_worker, num_gpus=1)(write_vectors)
    ray.get(task.remote(dump_run(run), weights_of, data.uri, uri, identity))


def write_vectors(settings: dict[str, Any], weights_of: str | None, prepared_uri: str, uri: str, identity: str) -> None:
    """Embed the catalogue and write the cache. settings: the Run as plain values."""
    run, data = make_run(settings, "features"), PreparedData.open(prepared_uri)
    assets = read_assets_of(weights_of) if weights_of else learn_assets(run.model.encoders, data)
    model = assemble_model(run.model, data, assets, run.seed, pretrained=weights_of is None)
    if weights_of:
        load_matching_weights(model, read_weights_of(weights_of))
    device = torch.device("cuda" if run.train.use_gpu else "cpu")
    model.to(device).eval()
    stream = assemble_stream(model, run.model, run.loss, data, make_plan(run.train, data, run.seed), run.stream)
    vectors = embed_modalities(model, stream, device)
    stream.close()
    with staged_folder(uri) as stage:
        for name, (vectors_ND, present_mask_N) in vectors.items():
            write_bytes(stage.path(f"{name}.safetensors"), save({"vectors_ND": vectors_ND, "present_mask_N": present_mask_N}))
        counts = {"num_items": data.num_items, "dimensions": {name: vectors_ND.shape[1] for name, (vectors_ND, _) in vectors.items()}}
        stage.commit(FEATURES_KIND, identity, parents={"prepared": data.identity}, counts=counts, config=settings["model"]["encoders"])
    logger.info("features | %s of %d items in %s", ", ".join(vectors), data.num_items, uri)
