"""Settings of training."""

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, PlainValidator, model_validator

from medley.heads.als import AlsConfig
from medley.heads.ease import EaseConfig
from medley.heads.vae import VaeConfig
from medley.metrics.ranking import METRICS
from medley.training.blend import BlendConfig
from medley.training.row_update import RowOptimizer


class EngineConfig(BaseModel):
    """How DeepSpeed holds the model. Any of these may change between a stop and its resume."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    zero_stage: Literal[0, 1, 2, 3] = 2
    """what is sharded over the workers: 0 nothing, 1 optimiser state, 2 and gradients, 3 and parameters"""
    precision: Literal["fp32", "bf16"] = "fp32"
    """bf16 keeps fp32 master weights; needs zero_stage 1 to 3"""
    bucket_elements: int = Field(default=5_000_000, ge=1000)
    """elements reduced or gathered at a time; larger ones (5e8) suit GPUs with fast links and cost 4 bytes each"""

    @model_validator(mode="after")
    def _check_precision(self) -> Self:
        # DeepSpeed 0.19.8 gives stage 0 in bf16 an optimiser whose states cannot be read by name: no checkpoint could be written.
        if self.precision == "bf16" and self.zero_stage == 0:
            raise ValueError("zero_stage 1, 2 or 3 with precision bf16")
        return self


class OptimizerConfig(BaseModel):
    """AdamW (Loshchilov and Hutter 2019) with warm-up and cosine decay."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    learning_rate: float = Field(default=1e-3, gt=0)
    """of fusion, head and encoders without one of their own"""
    table_learning_rate: float | None = Field(default=None, gt=0)
    """of user and item tables (free vectors, biases, attributes); null: learning_rate"""
    weight_decay: float = Field(default=0.01, ge=0)
    """of matrices; biases and norms have none"""
    table_weight_decay: float = Field(default=0.0, ge=0)
    """of user and item tables: the regularisation of matrix factorisation"""
    table_update: Literal["adamw"] | RowOptimizer = "adamw"
    """how the tables of users and items (free vectors, biases) are held and updated. adamw: dense, inside the engine like all other weights. The others
    share out the rows over the workers, outside the engine, and move only the rows that a step read, without momentum or decay of the rest, for tables
    that no machine holds: sparse_adam keeps two values per value; rowwise_adam one, and one per row; rowwise_adagrad one per row (it wants a
    table_learning_rate near 0.1). All workers read rows from each other, so networks matter; the finished scorer is still one whole"""
    warmup_share: float = Field(default=0.05, ge=0, le=1)
    """share of all steps in which the rate rises from 0"""
    final_share: float = Field(default=0.05, ge=0, le=1)
    """the rate at the last step as a share of the highest"""
    gradient_clipping: float = Field(default=1.0, gt=0)
    """largest norm of the whole gradient"""


def _read_workers(value: Any) -> int | tuple[int, int]:
    """A number of workers, or the fewest and the most."""
    bounds = value if isinstance(value, list | tuple) else (value, value)
    is_whole = all(isinstance(bound, int) and not isinstance(bound, bool) for bound in bounds)
    if len(bounds) != 2 or not is_whole or not 1 <= bounds[0] <= bounds[1]:
        raise ValueError("a number of workers of at least 1, or [min, max] of them")
    return value if isinstance(value, int) else (bounds[0], bounds[1])


Workers = Annotated[int | tuple[int, int], PlainValidator(_read_workers)]
"""A number, or the fewest and the most."""


class GradientTrainConfig(BaseModel):
    """Training by gradient descent."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["gradient"] = "gradient"
    epochs: int = Field(default=5, ge=1)
    """most passes over the interactions"""
    micro_batch_size: int = Field(default=512, ge=1)
    """interactions that are scored against each other; decides in-batch negatives, so it changes the result"""
    popularity_exponent: float = Field(default=0.0, ge=0, le=1)
    """rows are drawn with a probability in proportion to (train count of their item) ** -popularity_exponent, as many as there are;
    0: every row exactly once per epoch; 1: every item equally often. The sampling-bias correction of the losses follows it."""
    num_micro_batches: int = Field(default=2, ge=1)
    """micro-batches of one step; the number of workers must divide it"""
    optimizer: OptimizerConfig = OptimizerConfig()
    metric: str = Field(default="ndcg@10", pattern=rf"^({'|'.join(METRICS)})@[1-9]\d*$")
    """validation metric that chooses the best epoch, NAME@K: ndcg, recall, precision, f1, hit_rate or mrr among the K best"""
    patience: int = Field(default=0, ge=0)
    """epochs without a better metric after which training stops; 0: never"""
    start_from: str | None = None
    """folder of a finished run or search of the same prepared data whose weights of equal name and shape are taken over; or of a run over an earlier
    set that the data extend (data.base): known users and items keep their rows, encoders their vocabularies; optimiser states begin anew"""
    workers: Workers = 1
    """training processes, which must divide num_micro_batches; [min, max]: the most of them that divide and find room, chosen anew at every start, and more
    while training when room appears. May change between a stop and its resume"""
    use_gpu: bool = False
    """one GPU per worker, NCCL; false: CPUs, gloo"""
    cpus_per_worker: float = Field(default=1, gt=0)
    """logical CPUs that Ray sets aside per worker"""
    engine: EngineConfig = EngineConfig()
    checkpoint_every_steps: int | None = Field(default=None, ge=1)
    """further checkpoints within an epoch; null: only at its end"""
    keep_checkpoints: int = Field(default=2, ge=1)
    """newest checkpoints kept, beside the best"""
    max_failures: int = Field(default=2, ge=0)
    """times that workers are started again from the last checkpoint, after they were lost, hung or preempted, storage failed, or a loss was not finite"""
    watchdog_seconds: float | None = Field(default=600.0, gt=0)
    """a rank that finishes no step, batch of validation or checkpoint in this time writes all stacks and ends, so that the group starts again;
    must be longer than the slowest of them. null: a hang is waited for"""
    log_every_steps: int = Field(default=20, ge=1)
    """steps between log lines"""

    @property
    def min_workers(self) -> int:
        """Fewest workers."""
        return self.workers if isinstance(self.workers, int) else self.workers[0]

    @property
    def max_workers(self) -> int:
        """Most workers."""
        return self.workers if isinstance(self.workers, int) else self.workers[1]

    @property
    def world_sizes(self) -> list[int]:
        """Numbers of workers that are allowed and divide num_micro_batches, rising; may be empty."""
        return [size for size in range(self.min_workers, self.max_workers + 1) if self.num_micro_batches % size == 0]


HOLDING_FIELDS = frozenset(
    {"workers", "use_gpu", "cpus_per_worker", "engine", "checkpoint_every_steps", "keep_checkpoints", "max_failures", "watchdog_seconds", "log_every_steps"}
)
"""Settings that change how a run is held, not what it learns: they are no part of its fingerprint."""

TrainConfig = Annotated[GradientTrainConfig | AlsConfig | EaseConfig | VaeConfig | BlendConfig, Field(discriminator="kind")]
