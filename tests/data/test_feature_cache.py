"""The feature cache: every content once, in parts that survive, proved by hashes; over the tiny data."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from medley.data.feature_cache import EncoderSource, EncodeSettings, Origin, content_hashes, encode_catalogue, encode_part
from medley.data.feature_store import matrix_name, read_matrix, read_weights, whole_files
from medley.data.memory import CatalogueVectors, MemoryStream, WithVectors
from medley.data.prepared import PreparedData
from medley.encoders import stack_inputs
from medley.encoders.cached import CachedEncoder
from medley.encoders.frozen import build_frozen
from medley.encoders.subword import SubwordConfig
from medley.manifest import write_manifest
from medley.schema import InputError

SETTINGS = EncodeSettings(num_tasks=2, cpus_per_task=1, decode_threads=1)
TEXT = SubwordConfig(vocabulary_size=100, dimension=6, train="frozen", cache=True)


def source_of(config: Any, values: list[Any], **changes: Any) -> EncoderSource:
    """An encoder with the first weights of its configuration."""
    assets = config.learn(values)
    encoder = build_frozen(config, assets, pretrained=True)
    source = EncoderSource(config, assets, encoder.state_dict(), int(encoder.output_dimension), "fp32", "cpu")  # type: ignore[arg-type]
    return replace(source, **changes)


def values_of(data: PreparedData, column: str) -> list[Any]:
    """Every item's value."""
    return data.item_store().take(np.arange(data.num_items), [column])[column].to_pylist()


@pytest.fixture(scope="module")
def data(tiny_prepared: str) -> PreparedData:
    return PreparedData.open(tiny_prepared)


@pytest.fixture(scope="module")
def encoded(data: PreparedData, tmp_path_factory: pytest.TempPathFactory) -> tuple[EncoderSource, str, dict[str, Any]]:
    """Texts encoded into a folder, and what encode_catalogue said."""
    source = source_of(TEXT, [text for text in values_of(data, "text") if text is not None])
    uri = str(tmp_path_factory.mktemp("features") / source.identity)
    return source, uri, encode_catalogue(source, data, uri, SETTINGS)


def copied(encoded: tuple[EncoderSource, str, dict[str, Any]], target: Path) -> str:
    """The same folder once more, to be damaged."""
    target.mkdir()
    for path in Path(encoded[1]).iterdir():
        (target / path.name).write_bytes(path.read_bytes())
    return str(target)


def parts_of(uri: str) -> list[Path]:
    return sorted(Path(uri).glob("part-*.safetensors"))


def flip(path: Path) -> None:
    """One bit of the last byte."""
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def test_each_items_vector_is_what_the_frozen_encoder_gives_to_the_bit(data: PreparedData, encoded: tuple[EncoderSource, str, dict[str, Any]]):
    source, uri, result = encoded
    vectors_ND, present_mask_N = read_matrix(uri, data.identity, "text", "text")
    encoder, texts = build_frozen(source.config, source.assets, pretrained=True), values_of(data, "text")
    assert present_mask_N.tolist() == [text is not None for text in texts]
    assert not vectors_ND[~present_mask_N].any()
    for item in np.flatnonzero(present_mask_N)[::10]:
        alone = encoder(stack_inputs([encoder.prepare(texts[item])]))  # type: ignore[operator]
        assert torch.equal(torch.from_numpy(vectors_ND[item]), alone[0])
    distinct = len({text for text in texts if text is not None})
    assert (result["num_computed"], result["reused"]) == (distinct, False)
    manifest = json.loads(Path(uri, "manifest.json").read_text())
    assert (manifest["counts"], manifest["fingerprint"]) == ({"dimension": 6, "num_vectors": distinct}, source.identity)


def test_what_is_there_is_not_computed_again(data: PreparedData, encoded: tuple[EncoderSource, str, dict[str, Any]]):
    source, uri, _ = encoded
    before = Path(uri, "manifest.json").read_bytes()
    again = encode_catalogue(source, data, uri, SETTINGS)
    assert (again["reused"], again["num_computed"]) == (True, 0)
    assert Path(uri, "manifest.json").read_bytes() == before


def test_the_weights_lie_beside_the_vectors(encoded: tuple[EncoderSource, str, dict[str, Any]]):
    source, uri, _ = encoded
    weights = read_weights(uri)
    assert weights.keys() == source.weights.keys()
    assert all(torch.equal(weights[name], source.weights[name]) for name in weights)


def test_equal_contents_of_another_prepared_set_are_not_encoded_again(
    data: PreparedData, encoded: tuple[EncoderSource, str, dict[str, Any]], tmp_path: Path, ray_session: None
):
    """The other set has the first set's items, two of them with new texts."""
    uri, other = copied(encoded, tmp_path / "features"), tmp_path / "other"
    shard = pa.ipc.open_file(pa.memory_map(str(Path(data.uri, "items", "part-00000.arrow")))).read_all()
    texts = shard["text"].to_pylist()
    first, second = [place for place, text in enumerate(texts) if text is not None][:2]
    texts[first], texts[second] = "a text that is new", "another one"
    changed = shard.set_column(shard.column_names.index("text"), "text", pa.array(texts))
    (other / "items").mkdir(parents=True)
    with pa.ipc.new_file(str(other / "items" / "part-00000.arrow"), changed.schema) as writer:
        writer.write_table(changed.combine_chunks())
    write_manifest(str(other), "prepared", "0123456789abcdef", parents={}, counts=data.manifest["counts"], config={})
    other_data = PreparedData.open(str(other))
    result = encode_catalogue(encoded[0], other_data, uri, SETTINGS)
    assert (result["num_computed"], result["reused"]) == (2, False)
    old, new = read_matrix(uri, data.identity, "text", "text")[0], read_matrix(uri, other_data.identity, "text", "text")[0]
    assert np.flatnonzero((old != new).any(axis=1)).tolist() == [first, second]


def test_an_interrupted_run_goes_on_with_the_parts_that_are_missing(
    data: PreparedData, encoded: tuple[EncoderSource, str, dict[str, Any]], tmp_path: Path, ray_session: None
):
    """A run that ended with one part whole, and another written but for the hash beside it."""
    source, uri, result = encoded
    interrupted = copied(encoded, tmp_path / "features")
    for path in Path(interrupted).iterdir():
        if not path.name.startswith("encoder."):
            path.unlink()
    contents = content_hashes(data, "text")
    items_of_content = {content: item for item, content in enumerate(contents) if content is not None}
    groups = [list(items_of_content.items())[start:stop] for start, stop in ((0, 20), (20, 30))]
    origin = Origin(source.config, tuple(sorted(source.assets.items())), interrupted, "fp32", "cpu")
    for group in groups:
        encode_part(pa.table({"item": [item for _, item in group], "content": [content for content, _ in group]}), origin, data.uri, SETTINGS)
    unfinished = next(path for path in parts_of(interrupted) if path.stat().st_size == min(part.stat().st_size for part in parts_of(interrupted)))
    Path(f"{unfinished}.json").unlink()
    again = encode_catalogue(source, data, interrupted, SETTINGS)
    assert again["num_computed"] == result["num_computed"] - 20
    assert np.array_equal(read_matrix(interrupted, data.identity, "text", "text")[0], read_matrix(uri, data.identity, "text", "text")[0])


def test_a_damaged_matrix_is_refused_and_made_again(data: PreparedData, encoded: tuple[EncoderSource, str, dict[str, Any]], tmp_path: Path, ray_session: None):
    source, uri, _ = encoded
    damaged = copied(encoded, tmp_path / "features")
    flip(Path(damaged, matrix_name(data.identity, "text")))
    with pytest.raises(InputError, match=r"has SHA-256 .*; expected .* from its manifest; damaged vectors are made again: run jobs\.encode .*encoder=text"):
        read_matrix(damaged, data.identity, "text", "text")
    assert encode_catalogue(source, data, damaged, SETTINGS)["num_computed"] == 0  # the parts are whole
    assert np.array_equal(read_matrix(damaged, data.identity, "text", "text")[0], read_matrix(uri, data.identity, "text", "text")[0])


@pytest.mark.parametrize("suffix", ["", ".json"])
def test_a_damaged_part_is_encoded_again(
    data: PreparedData, encoded: tuple[EncoderSource, str, dict[str, Any]], tmp_path: Path, ray_session: None, suffix: str
):
    source, _, result = encoded
    damaged = copied(encoded, tmp_path / "features")
    (part,) = parts_of(damaged)
    before = part.read_bytes()
    flip(Path(f"{part}{suffix}"))
    assert encode_catalogue(source, data, damaged, SETTINGS)["num_computed"] == result["num_computed"]
    assert part.read_bytes() == before
    assert part.name in whole_files(damaged)


def test_vectors_that_were_never_made_are_asked_for(data: PreparedData, encoded: tuple[EncoderSource, str, dict[str, Any]], tmp_path: Path):
    with pytest.raises(InputError, match=r"has no vectors of encoder 'text' for this prepared data; .*; run jobs\.encode"):
        read_matrix(str(tmp_path / "nowhere"), data.identity, "text", "text")
    with pytest.raises(InputError, match="has no vectors of encoder 'text'"):
        read_matrix(encoded[1], "another set", "text", "text")


def test_a_folder_belongs_to_all_that_decides_a_vector_and_to_nothing_else():
    texts = ["a red bird", "a blue fish"]
    own = source_of(TEXT, texts)
    same = [
        replace(own, config=TEXT.model_copy(update={"learning_rate": 0.5, "cache": False, "train": "full", "column": "plot"})),
        source_of(TEXT, texts),
    ]
    others = [
        replace(own, config=TEXT.model_copy(update={"max_tokens": 5})),
        replace(own, assets=TEXT.learn(["another text"])),
        replace(own, weights={name: value + 1 for name, value in own.weights.items()}),
        replace(own, precision="bf16"),
        replace(own, device="cuda"),
    ]
    assert {source.identity for source in same} == {own.identity}
    assert len({own.identity, *(source.identity for source in others)}) == 6


def test_contents_are_hashed_by_value_and_pictures_as_prepare_did(data: PreparedData):
    texts = values_of(data, "text")
    hashes = content_hashes(data, "text")
    assert [content is None for content in hashes] == [text is None for text in texts]
    assert all((hashes[a] == hashes[b]) == (texts[a] == texts[b]) for a in range(0, 120, 7) for b in range(0, 120, 5))
    assert content_hashes(data, "image") == values_of(data, "image_sha256")


def test_cached_vectors_stand_beside_the_inputs_of_encoders_that_run():
    vectors = CatalogueVectors({"text": np.array([[1.0, 2], [0, 0], [3, 4]], np.float32)}, {"text": np.array([True, False, True])})
    running = CatalogueVectors({"image": np.array([[5.0], [6], [7]], np.float32)}, {"image": np.array([True, True, True])})
    encoders: dict[str, Any] = {"text": CachedEncoder(2), "image": CachedEncoder(1)}
    inputs, present = WithVectors(running, vectors).stack(np.array([1, 2]), encoders)
    assert {name: entry["vector"].tolist() for name, entry in inputs.items()} == {"text": [[3, 4]], "image": [[6], [7]]}
    assert {name: mask.tolist() for name, mask in present.items()} == {"text": [False, True], "image": [True, True]}
    nothing, _ = vectors.stack(np.array([1]), {"text": encoders["text"]})
    assert nothing["text"]["vector"].tolist() == [[0, 0]]
    assert list(MemoryStream(None, encoders, vectors).items([1, 2])) == [vectors, vectors]  # type: ignore[arg-type]
