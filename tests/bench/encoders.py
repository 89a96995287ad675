"""python -m tests.bench.encoders [--quick]: text encoder and whole step in bf16 on one core, beside stock float32 and the speed of its matrix products.

One thread in one process. The text encoder: a BERT of 6 layers of 384 with random weights, as MiniLM. Texts are as long as movie plots (normal, mean
34, deviation 12, from 4 to 64 tokens): TRAIN_TEXTS in a training step, INFER_TEXTS for inference, as many as a task of jobs.encode takes. Arms take
turns, ROUNDS times, after one call of each to warm up:

- train, stock: transformers in float32 as its documentation has it: rows padded to the longest, torch's AdamW, norm clipped. Loss: mean square of the
  mean of the token vectors
- train, ours: the same network, rows and loss as an encoder of ours in our DeepSpeedEngine, ZeRO-1, train.engine.precision bf16
- inference, stock: evaluation mode, no_grad, float32, padded to the longest; ours: the frozen encoder in bf16, as jobs.encode runs it
- the same four with all texts of 32 tokens: what the number format and kernels give without texts' lengths (detail)
- step: text (32 tokens), ResNet-18 of pictures of 128², the audio CNN, gated fusion, MF, in-batch softmax; STEP_ITEMS items; forward, backward, update in
  our engine in bf16
- GEMM: a product of two 2048² matrices in bf16, and in float32

Figures: text_train_bf16_vs_fp32, text_inference_bf16_vs_fp32 (medians of the rounds' ratios of seconds); step_of_gemm_peak: FLOPs of the step
(PyTorch's counter: products and convolutions, forward and backward) over its seconds, as a share of the bf16 product's in the same round.
`gemm_bf16_vs_fp32` in detail says how much there is to gain on the processor.
"""

import argparse
import json
import os
import socket
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from tests.bench.figures import machine, quartiles

TRAIN_TEXTS, INFER_TEXTS, STEP_ITEMS, ROUNDS = 256, 512, 64, 5
QUICK_TRAIN_TEXTS, QUICK_INFER_TEXTS, QUICK_STEP_ITEMS, QUICK_ROUNDS = 16, 32, 16, 1
SAME_LENGTH = 32
BERT = {"vocab_size": 30522, "hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12, "intermediate_size": 1536}
LEARNING_RATE = 1e-4


def has_bf16() -> bool:
    """Whether the processor multiplies bf16 numbers."""
    import torch

    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def draw_texts(num_texts: int, same_length: int | None) -> dict[str, Any]:
    """Random tokens and their mask, padded to the longest."""
    import torch

    generator = np.random.default_rng(0)
    lengths = np.full(num_texts, same_length) if same_length else np.clip(generator.normal(34, 12, num_texts).round(), 4, 64).astype(int)
    rows = [torch.from_numpy(generator.integers(5, BERT["vocab_size"], length)) for length in lengths]
    ids_PT = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    mask_PT = torch.arange(ids_PT.shape[1])[None] < torch.from_numpy(lengths)[:, None]
    return {"token_ids": ids_PT, "token_mask": mask_PT.long()}


def stock_arms(folder: str) -> tuple[Callable[[Any], None], Callable[[Any], None]]:
    """One training step, and inference, of transformers in float32."""
    import torch
    from transformers import AutoModel

    model = AutoModel.from_pretrained(folder, dtype=torch.float32).train()
    model.pooler.requires_grad_(False)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=LEARNING_RATE)

    def vectors(texts: Any) -> Any:
        mask_PT1 = texts["token_mask"].unsqueeze(-1)
        hidden_PTD = model(input_ids=texts["token_ids"], attention_mask=texts["token_mask"]).last_hidden_state
        return (hidden_PTD * mask_PT1).sum(dim=1) / mask_PT1.sum(dim=1)

    def train(texts: Any) -> None:
        model.train()
        vectors(texts).square().mean().backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()

    def infer(texts: Any) -> None:
        model.eval()
        with torch.no_grad():
            vectors(texts)

    return train, infer


def our_arms(folder: str) -> tuple[Callable[[Any], None], Callable[[Any], None]]:
    """One training step, and inference, of our encoder in bf16."""
    import torch

    from medley.encoders.frozen import build_frozen
    from medley.encoders.transformer_text import TransformerTextConfig
    from medley.model import encode_rows

    config = TransformerTextConfig(path=folder)
    assets = config.learn([])

    class Text(torch.nn.Module):
        """The encoder alone, called as the model calls it."""

        def __init__(self) -> None:
            super().__init__()
            self.encoders = torch.nn.ModuleDict({"text": config.build(assets, pretrained=True)})

        def forward(self, texts: Any) -> tuple[Any, ...]:
            return (encode_rows(self.encoders["text"], texts),)

    engine = our_engine(Text(), {"text": LEARNING_RATE})
    frozen = build_frozen(config, assets, pretrained=True).to(torch.bfloat16)

    def train(texts: Any) -> None:
        engine.model.train()
        engine.backward(engine.forward(texts)[0].float().square().mean())
        engine.step(1.0)

    return train, lambda texts: frozen(texts)


def our_engine(model: Any, rates: dict[str, float | None]) -> Any:
    """DeepSpeed in bf16 over a world of one."""
    import torch

    from medley.training.config import EngineConfig, OptimizerConfig
    from medley.training.engine import DeepSpeedEngine

    config, optimizer = EngineConfig(zero_stage=1, precision="bf16"), OptimizerConfig(learning_rate=LEARNING_RATE)
    return DeepSpeedEngine(model, optimizer, rates, config, micro_batch_size=1, micro_batches_per_rank=1, device=torch.device("cpu"))


def multimodal_step(folder: str, num_items: int) -> tuple[Callable[[], None], float]:
    """The whole step, and its FLOPs."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from medley.encoders import EncoderConfig, stack_inputs
    from medley.encoders.logmel_cnn import LogMelCnnConfig
    from medley.encoders.resnet import ResNetConfig
    from medley.encoders.transformer_text import TransformerTextConfig
    from medley.losses import InBatchSoftmaxConfig, batch_loss
    from medley.model import ModelConfig, build_model
    from medley.schema import Batch

    text = TransformerTextConfig(path=folder)
    encoders: dict[str, EncoderConfig] = {"text": text, "image": ResNetConfig(side_pixels=128), "audio": LogMelCnnConfig()}
    counts_N = torch.ones(num_items, dtype=torch.int64)
    model = build_model(
        ModelConfig(encoders=encoders),
        {"text": text.learn([])},
        train_count_N=counts_N,
        user_train_count_V=counts_N,
        num_categories={},
        mean_value=0.0,
        pretrained=True,
    )
    everything = torch.arange(num_items)
    named: dict[str, Any] = model.named_encoders
    inputs = {"text": draw_texts(num_items, SAME_LENGTH)} | {name: stack_inputs([named[name].dummy()] * num_items) for name in ("image", "audio")}
    batch = Batch(
        place=(0, 0, 0),
        user_index_B=everything,
        item_position_B=everything,
        row_weight_B=torch.ones(num_items),
        value_B=torch.zeros(num_items),
        item_index_U=everything,
        inputs=inputs,
        present_mask_U={name: torch.ones(num_items, dtype=torch.bool) for name in encoders},
        known_positive_mask_BU=torch.zeros(num_items, num_items, dtype=torch.bool),
        history_position_BL=torch.zeros(num_items, 1, dtype=torch.int64),
        history_mask_BL=torch.zeros(num_items, 1, dtype=torch.bool),
    )
    engine = our_engine(model, dict.fromkeys(encoders))

    def step() -> None:
        engine.model.train()
        engine.backward(batch_loss(InBatchSoftmaxConfig(), engine.forward(batch), batch, counts_N, num_items, num_items) / num_items)
        engine.step(1.0)

    with FlopCounterMode(display=False) as counter:
        step()
    return step, float(counter.get_total_flops())


def gemm_flops_per_second(dtype: Any) -> float:
    """Of torch's product of two 2048² matrices, the best of three."""
    import torch

    a, b = (torch.randn(2048, 2048).to(dtype) for _ in range(2))
    return 2 * 2048**3 / min(seconds(lambda: torch.mm(a, b)) for _ in range(3))


def seconds(call: Callable[[], Any]) -> float:
    """Of one call."""
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def measure(num_train: int, num_infer: int, num_items: int, num_rounds: int) -> tuple[list[dict[str, float]], float]:
    """Seconds of each arm and speeds of the products for each round; FLOPs of the step."""
    import torch

    from tests.training.tiny_text import write_bert

    with tempfile.TemporaryDirectory() as place:
        folder = write_bert(Path(place), "1GB", dropout=0.1, **{**BERT, "max_position_embeddings": 512})
        (stock_train, stock_infer), (our_train, our_infer) = stock_arms(folder), our_arms(folder)
        step, flops = multimodal_step(folder, num_items)
    calls: dict[str, Callable[[], Any]] = {"step": step}
    for name, same_length in (("plots", None), ("same", SAME_LENGTH)):
        train, infer = draw_texts(num_train, same_length), draw_texts(num_infer, same_length)
        calls |= {
            f"train_stock_{name}": partial(stock_train, train),
            f"train_ours_{name}": partial(our_train, train),
            f"infer_stock_{name}": partial(stock_infer, infer),
            f"infer_ours_{name}": partial(our_infer, infer),
        }
    for call in calls.values():
        call()
    rounds = []
    for number in range(num_rounds):
        found = {"gemm_bf16": gemm_flops_per_second(torch.bfloat16), "gemm_fp32": gemm_flops_per_second(torch.float32)}
        found |= {name: seconds(call) for name, call in calls.items()}
        rounds.append(found)
        print(f"round {number + 1} of {num_rounds} | {', '.join(f'{name} {value:.3g}' for name, value in found.items())}", file=sys.stderr)
    return rounds, flops


def main() -> None:
    """Run the rounds, print one JSON line."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.encoders", description="Text encoder and whole step in bf16 on one core.")
    parser.add_argument("--quick", action="store_true", help="few texts and items, one round: only shows that it runs")
    quick = parser.parse_args().quick
    import torch

    if not has_bf16():
        print("skipped: this processor has no instructions for bf16", file=sys.stderr)
        return
    torch.set_num_threads(1)
    os.environ |= {"LOCAL_RANK": "0", "DS_ACCELERATOR": "cpu"}
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    torch.distributed.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=0, world_size=1)
    sizes = (QUICK_TRAIN_TEXTS, QUICK_INFER_TEXTS, QUICK_STEP_ITEMS) if quick else (TRAIN_TEXTS, INFER_TEXTS, STEP_ITEMS)
    rounds, flops = measure(*sizes, QUICK_ROUNDS if quick else ROUNDS)
    torch.distributed.destroy_process_group()

    def ratio(slow: str, fast: str) -> list[float]:
        return quartiles([each[slow] / each[fast] for each in rounds])

    of_peak = quartiles([flops / each["step"] / each["gemm_bf16"] for each in rounds])
    train, infer = ratio("train_stock_plots", "train_ours_plots"), ratio("infer_stock_plots", "infer_ours_plots")
    figures = {"text_train_bf16_vs_fp32": train[1], "text_inference_bf16_vs_fp32": infer[1], "step_of_gemm_peak": of_peak[1]}
    detail = {
        "quartiles": {"text_train_bf16_vs_fp32": train, "text_inference_bf16_vs_fp32": infer, "step_of_gemm_peak": of_peak},
        "texts_of_one_length": {"train": ratio("train_stock_same", "train_ours_same"), "inference": ratio("infer_stock_same", "infer_ours_same")},
        "gemm_bf16_vs_fp32": ratio("gemm_bf16", "gemm_fp32"),
        "gemm_gigaflops": {"bf16": quartiles([each["gemm_bf16"] / 1e9 for each in rounds]), "fp32": quartiles([each["gemm_fp32"] / 1e9 for each in rounds])},
        "texts": {"train": sizes[0], "inference": sizes[1]},
        "seconds": {name: quartiles([each[name] for each in rounds]) for name in rounds[0] if not name.startswith("gemm")},
        "step": {"gigaflops": round(flops / 1e9, 1), "items": sizes[2]},
        "machine": machine(),
    }
    print(json.dumps({"bench": "encoders", "figures": figures, "detail": detail}))


if __name__ == "__main__":
    main()
