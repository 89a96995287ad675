"""What travels to the tasks that decode: encoders without their weights, which prepare the same."""

import numpy as np
import pytest
import torch
from ray import cloudpickle

from medley.data.cluster_decoding import without_weights
from medley.encoders import Encoder
from medley.encoders.logmel_cnn import LogMelCnnConfig
from medley.encoders.resnet import ResNetConfig
from medley.encoders.subword import SubwordConfig
from medley.media import encode_flac, encode_jpeg

TEXT = SubwordConfig(vocabulary_size=60, dimension=4000)
CASES = [
    (TEXT.build(TEXT.learn(["a red bird", "a blue fish"]), pretrained=False), "a red fish"),
    (ResNetConfig(side_pixels=16, width=64).build({}, pretrained=False), encode_jpeg(np.full((3, 20, 12), 90, dtype=np.uint8), 90)),
    (LogMelCnnConfig(clip_seconds=0.5, width=64).build({}, pretrained=False), encode_flac(np.sin(np.arange(4000) / 9), 16_000)),
]


@pytest.mark.parametrize(("encoder", "value"), CASES, ids=["text", "image", "audio"])
def test_an_encoder_without_weights_is_small_and_prepares_the_same(encoder: Encoder, value: str | bytes):
    sent = cloudpickle.dumps(without_weights(encoder))
    assert len(sent) < 150_000 < sum(weight.nbytes for weight in encoder.parameters())  # type: ignore[attr-defined]
    received = cloudpickle.loads(sent)
    for left, right in ((received.prepare(value), encoder.prepare(value)), (received.dummy(), encoder.dummy())):
        assert left.keys() == right.keys()
        assert all(torch.equal(left[name], right[name]) for name in left)


def test_what_is_no_module_travels_as_it_is():
    class Plain:
        output_dimension = 1

    plain = Plain()
    assert without_weights(plain) is plain  # type: ignore[arg-type, comparison-overlap]
