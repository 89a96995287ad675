"""Memory of one training rank, by arithmetic: what DeepSpeed 0.19.8 holds at each ZeRO stage, as `engine.py` sets it up.

T trainable elements, P all, N ranks, bytes per element 4 in float32; in bf16 weights and gradients take 2, master weights and moments 4.

    stage   always                            and in backward, with activations     or after it
    0       P + 2 T moments                   T gradients                           T + T flattened for the exchange
    1       P + T/N master + 2 T/N moments    T + a bucket                          T + T/N averaged + a bucket, or G/N
    2       as 1                              T/N + T/N + what waits for exchange   G/N
    3       P/N + 3 T/N + T/N gradients       P gathered (10^9 at most) + a bucket  G/N
    G: elements of the largest parameter group, whose gradient is in float32 for the update, which is in place (torch's fused AdamW).

Stages 1 to 3 hold master weights in float32 too. The figures were read off live tensors at 1 and 2 ranks; tests compare them with measured peaks
(estimate / measured between 0.85 and 1.2). Offload is what its definition says and was not measured.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from torch import nn

from medley.training.config import OptimizerConfig
from medley.training.engine import parameter_groups

Offload = Literal["none", "optimizer", "optimizer and parameters"]
MAX_GATHERED_ELEMENTS = 10**9
"""DeepSpeed's stage3_max_live_parameters"""
FLATTENED_ELEMENTS = 5 * 10**8
"""what stage 0 puts together for one exchange"""
SETTINGS: tuple[tuple[int, Offload], ...] = ((0, "none"), (1, "none"), (2, "none"), (3, "none"), (2, "optimizer"), (3, "optimizer and parameters"))
"""(stage, what is kept in the host's memory), those that are estimated"""
PREFERENCE = (2, 1, 0, 3)
"""of stages that fit: 0 to 2 exchange equally much and 2 holds least; 3 exchanges half as much again (ZeRO, Rajbhandari et al. 2020)"""


@dataclass(frozen=True)
class ModelSize:
    """What the formulas need to know of a model."""

    num_parameters: int
    """elements, frozen ones included"""
    num_trainable: int
    largest_group: int
    """elements of the largest parameter group of the optimiser"""
    largest_parameter: int
    buffer_bytes: int

    @classmethod
    def of(cls, model: nn.Module, optimizer: OptimizerConfig, encoder_rates: Mapping[str, float | None]) -> "ModelSize":
        """Count a model, which may lie on the meta device."""
        trainable = [parameter.numel() for parameter in model.parameters() if parameter.requires_grad]
        groups = parameter_groups(model, optimizer, encoder_rates)
        return cls(
            num_parameters=sum(parameter.numel() for parameter in model.parameters()),
            num_trainable=sum(trainable),
            largest_group=max((sum(parameter.numel() for parameter in group["params"]) for group in groups), default=0),
            largest_parameter=max((parameter.numel() for parameter in model.parameters()), default=0),
            buffer_bytes=sum(buffer.nbytes for buffer in model.buffers()),
        )

    @property
    def checkpoint_bytes(self) -> int:
        """One checkpoint: float32 weights and two moments."""
        return 4 * self.num_parameters + 8 * self.num_trainable + self.buffer_bytes


@dataclass(frozen=True)
class Estimate:
    """Bytes of one rank at one stage. Device: the GPU, or the process where training is on CPUs."""

    stage: int
    offload: Offload
    weights: int
    """weights and buffers, where the forward pass reads them"""
    optimizer: int
    """master weights and moments"""
    gradients: int
    """most that gradients, their exchange and gathered weights take in backward"""
    activations: int
    update: int
    """most that gradients and temporary tensors take in the exchange after backward and in the update"""
    host: int
    """in the host's memory because of offload"""

    @property
    def peak(self) -> int:
        """Most device memory at once."""
        return self.weights + self.optimizer + max(self.gradients + self.activations, self.update)


def estimate(size: ModelSize, stage: int, offload: Offload, *, is_bf16: bool, num_ranks: int, bucket_elements: int, activation_bytes: int) -> Estimate:
    """What one rank needs. activation_bytes: of one micro-batch, in the precision of training."""
    width = 2 if is_bf16 else 4
    all_, trainable = size.num_parameters * width, size.num_trainable * width
    master = 4 * size.num_trainable // num_ranks
    bucket, largest = min(bucket_elements, size.num_trainable) * width, size.largest_parameter * width
    group = 4 * size.largest_group // num_ranks
    if stage == 0:
        update = trainable + max(min(size.num_trainable, FLATTENED_ELEMENTS) * width, 2 * largest)
        return Estimate(0, offload, all_ + size.buffer_bytes, 2 * master * num_ranks, trainable, activation_bytes, update, 0)
    weights, optimizer, update, host = all_, 3 * master, group, 0
    if stage == 1:
        gradients = trainable + bucket
        update = max(trainable + trainable // num_ranks + bucket, update)
    elif stage == 2:
        waiting = min(trainable, trainable // num_ranks + 2 * (bucket + largest))
        gradients = waiting + trainable // num_ranks + bucket
    else:
        gathered = min(size.num_parameters, MAX_GATHERED_ELEMENTS) * width if num_ranks > 1 else 0
        weights = all_ // num_ranks
        own = trainable // num_ranks
        gradients, update = own + gathered + bucket, own + update
    if offload != "none":
        # Master weights, moments, gradients in float32 and a copy to send back lie with the host; on the device only what is on its way.
        host, optimizer, update = optimizer + master + trainable // num_ranks, 0, largest
        gradients = (gathered if stage == 3 else 0) + bucket + 2 * largest
    if offload == "optimizer and parameters":
        host, weights = host + weights, 0
    return Estimate(stage, offload, weights + size.buffer_bytes, optimizer, gradients, activation_bytes, update, host)
