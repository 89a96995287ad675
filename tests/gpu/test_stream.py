"""Batches on their way to a GPU lie in pinned memory."""

import numpy as np
import torch

from medley.data.batches import BatchMaker
from medley.data.plan import Plan
from medley.data.prepared import PreparedData
from medley.data.stream import BatchStream, StreamConfig
from medley.encoders.subword import SubwordConfig


def test_streamed_batches_are_pinned_and_arrive_whole(ray_session: None, tiny_prepared: str):
    data = PreparedData.open(tiny_prepared)
    config = SubwordConfig(vocabulary_size=100, dimension=6)
    texts = data.item_store().take(np.arange(data.num_items), ["text"])["text"].to_pylist()
    encoder = config.build(config.learn(text for text in texts if text is not None), pretrained=False)
    maker = BatchMaker.create(data, Plan(len(data.train), 8, 4, seed=1), history_length=3, attribute_columns=[], whole_catalogue=False)
    stream = BatchStream(maker, {"text": encoder}, {"text": "text"}, StreamConfig())
    for (batch,) in stream.global_batches(0, 0, [0]):
        assert batch.user_index_B.is_pinned()
        assert batch.inputs["text"]["token_ids"].is_pinned()
        moved = batch.to(torch.device("cuda"))
        assert torch.equal(moved.inputs["text"]["token_ids"].cpu(), batch.inputs["text"]["token_ids"])
    stream.close()
