"""What each of two ranks does in the test of low-rank updates under ZeRO-3, and the same in one process."""

import torch
from torch import Tensor, nn

from medley.encoders import stack_inputs
from medley.encoders.transformer_text import TransformerTextConfig
from medley.training.checkpoint_parts import write_part
from medley.training.config import EngineConfig, OptimizerConfig
from medley.training.engine import DeepSpeedEngine, Engine
from tests.encoder_cases import TEXTS

OPTIMIZER = OptimizerConfig(learning_rate=0.01)
SETTINGS = {"train": "lora", "lora": {"rank": 2, "targets": ["query", "value"]}}
NUM_STEPS = 3


class Scored(nn.Module):
    """A BERT with updates, and one score out of its vector."""

    def __init__(self, folder: str):
        super().__init__()
        torch.manual_seed(0)
        config = TransformerTextConfig.model_validate({"path": folder, **SETTINGS})
        encoder = config.build(config.learn([]), pretrained=True)
        for module in encoder.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        self.inputs = stack_inputs([encoder.prepare(text) for text in TEXTS])  # type: ignore[operator]  # every encoder has it
        self.encoders = nn.ModuleDict({"text": encoder})
        self.score = nn.Linear(16, 1)

    def forward(self, rows: list[int]) -> tuple[Tensor, ...]:
        """Scores of some of the texts."""
        return (self.score(self.encoders["text"]({name: values[rows] for name, values in self.inputs.items()})).squeeze(-1),)


def train(engine: Engine, parts: list[list[int]]) -> None:
    """A few steps over these micro-batches."""
    for _ in range(NUM_STEPS):
        for rows in parts:
            engine.backward((engine.forward(rows)[0] - torch.tensor(rows).float()).square().mean())
            engine.step(1.0)


def train_and_write(rank: int, folder: str, target: str) -> None:
    """Train at stage 3 on the rank's two texts and write its part of a checkpoint."""
    settings = EngineConfig(zero_stage=3)
    engine = DeepSpeedEngine(Scored(folder), OPTIMIZER, {"text": 0.1}, settings, micro_batch_size=2, micro_batches_per_rank=1, device=torch.device("cpu"))
    train(engine, [[2 * rank, 2 * rank + 1]])
    write_part(target, rank, engine.snapshot().slices)
