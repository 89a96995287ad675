"""The files of one encoder's feature cache: content-addressed parts, and a matrix per prepared set; nothing is trusted without its hash.

features/ENCODER-FINGERPRINT/
    encoder.safetensors      the encoder's weights
    part-….safetensors       content_sha256 (R, 32) uint8 and vectors (R, D) float32 of R items' contents
    items-….safetensors      vectors_ND float32 (zeros where an item has none) and present_mask_N bool of one prepared set, in item order
    FILE.json                size and SHA-256 of FILE, written after it: what an interrupted run finished
    manifest.json            written last: hashes of all files above
"""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow.fs as pafs
import torch
from safetensors.torch import load, load_file, save
from torch import Tensor

from medley.manifest import (
    exists,
    fingerprint,
    hash_file,
    join_uri,
    list_folder,
    open_storage,
    read_bytes,
    read_json,
    read_manifest,
    verify_files,
    write_bytes,
    write_json,
    write_manifest,
)
from medley.schema import InputError

logger = logging.getLogger(__name__)

FEATURES_KIND = "features"
WEIGHTS_NAME = "encoder.safetensors"
SUFFIX = ".safetensors"

Contents = Sequence[bytes | None]
"""The SHA-256 of each item's content, 32 bytes; None where an item has none"""


def matrix_name(prepared_identity: str, column: str) -> str:
    """The file with a prepared set's vectors."""
    return f"items-{fingerprint(prepared_identity, column)}{SUFFIX}"


def write_file(uri: str, name: str, tensors: Mapping[str, Tensor]) -> None:
    """One file, then its hash beside it."""
    write_bytes(join_uri(uri, name), save({key: tensor.contiguous() for key, tensor in tensors.items()}))
    write_json(join_uri(uri, f"{name}.json"), hash_file(*open_storage(join_uri(uri, name))))


def whole_files(uri: str) -> list[str]:
    """Names of the files whose hash is beside them and right. A damaged one is removed, so that it is made again."""
    filesystem, root = open_storage(uri)
    names = set(list_folder(uri))
    whole = []
    for name in sorted(name for name in names if name.endswith(SUFFIX) and f"{name}.json" in names):
        if _is_whole(filesystem, f"{root}/{name}", join_uri(uri, f"{name}.json")):
            whole.append(name)
            continue
        logger.warning("features | '%s' in '%s' is damaged and made again", name, uri)
        filesystem.delete_file(f"{root}/{name}")
        filesystem.delete_file(f"{root}/{name}.json")
    return whole


def _is_whole(filesystem: pafs.FileSystem, path: str, hash_uri: str) -> bool:
    try:
        return bool(read_json(hash_uri) == hash_file(filesystem, path))
    except InputError:  # its hash is no JSON
        return False


def read_parts(uri: str, names: Sequence[str]) -> tuple[list[np.ndarray], dict[bytes, tuple[int, int]]]:
    """Vectors of each part among the files, and where each content's vector is: (part, row)."""
    vectors: list[np.ndarray] = []
    places: dict[bytes, tuple[int, int]] = {}
    for name in (name for name in names if name.startswith("part-")):
        tensors = read_tensors(uri, name)
        for row, digest in enumerate(tensors["content_sha256"].numpy()):
            places[digest.tobytes()] = (len(vectors), row)
        vectors.append(tensors["vectors"].numpy())
    return vectors, places


def write_part(uri: str, name: str, contents: Sequence[bytes], vectors_RD: Tensor) -> None:
    """A part; names come from the contents, so the same part written twice is the same file."""
    digests = torch.from_numpy(np.frombuffer(b"".join(contents), np.uint8).reshape(len(contents), 32).copy())
    write_file(uri, name, {"content_sha256": digests, "vectors": vectors_RD})


def write_matrix(uri: str, name: str, contents: Contents, dimension: int) -> None:
    """The vectors of a prepared set out of the parts, which must have them all."""
    parts, places = read_parts(uri, whole_files(uri))
    vectors_ND = np.zeros((len(contents), dimension), dtype=np.float32)
    for item, content in enumerate(contents):
        if content is not None:
            part, row = places[content]
            vectors_ND[item] = parts[part][row]
    present_mask_N = torch.tensor([content is not None for content in contents])
    write_file(uri, name, {"vectors_ND": torch.from_numpy(vectors_ND), "present_mask_N": present_mask_N})


def write_features_manifest(uri: str, identity: str, settings: Mapping[str, object], dimension: int) -> None:
    """All whole files, those of another run at the same time too."""
    names = whole_files(uri)
    num_vectors = len(read_parts(uri, names)[1])
    write_manifest(
        uri, FEATURES_KIND, identity, parents={}, counts={"dimension": dimension, "num_vectors": num_vectors}, config=dict(settings), only=tuple(names)
    )


def read_matrix(uri: str, prepared_identity: str, column: str, encoder: str) -> tuple[np.ndarray, np.ndarray]:
    """(vectors_ND, present_mask_N) of a prepared set, memory-mapped where storage is local, the hash verified.

    Vectors that are not there, or damaged, are an InputError that says how they are made.
    """
    name = matrix_name(prepared_identity, column)
    remedy = f"run jobs.encode with this configuration (encoder={encoder})"
    if not exists(join_uri(uri, "manifest.json")) or name not in read_manifest(uri, FEATURES_KIND)["files"]:
        raise InputError(f"'{uri}' has no vectors of encoder '{encoder}' for this prepared data", "the items' vectors in the feature cache", remedy)
    try:
        verify_files(uri, read_manifest(uri, FEATURES_KIND), prefix=name)
    except InputError as error:
        raise InputError(error.got, error.expected, f"damaged vectors are made again: {remedy}") from None
    tensors = read_tensors(uri, name)
    return tensors["vectors_ND"].numpy(), tensors["present_mask_N"].numpy()


def read_weights(uri: str) -> dict[str, Tensor]:
    """The encoder's weights, hash verified."""
    verify_files(uri, read_manifest(uri, FEATURES_KIND), prefix=WEIGHTS_NAME)
    return read_tensors(uri, WEIGHTS_NAME)


def read_tensors(uri: str, name: str) -> dict[str, Tensor]:
    """One file's tensors: mapped where storage is local."""
    filesystem, path = open_storage(join_uri(uri, name))
    return load_file(Path(path)) if isinstance(filesystem, pafs.LocalFileSystem) else load(read_bytes(join_uri(uri, name)))
