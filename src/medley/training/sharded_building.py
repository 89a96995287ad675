"""Building a model that no rank could hold whole: at ZeRO-3 its transformers encoders are sharded while they are built."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from medley.training.config import EngineConfig
from medley.training.engine import deepspeed_settings, import_deepspeed


@contextmanager
def announce_sharding(config: EngineConfig, micro_batch_size: int, device: torch.device) -> Iterator[None]:
    """Around the building of the model and all of its training, in a process group.

    At ZeRO-3 transformers is told of it: its models are built sharded (`encoders/own_ranges.py`), and those that leave layers out at random run them on
    every rank, without which the others would wait. Other parts of the model are sharded by the engine.
    """
    if config.zero_stage < 3:
        yield
        return
    import_deepspeed(device)
    from transformers.integrations import HfDeepSpeedConfig, unset_hf_deepspeed_config

    # Of these settings only stage, precision and sizes of buckets matter here. transformers keeps no more than a weak reference.
    announced = HfDeepSpeedConfig(deepspeed_settings(config, 1.0, micro_batch_size, 1))
    try:
        yield
    finally:
        unset_hf_deepspeed_config()
        del announced
