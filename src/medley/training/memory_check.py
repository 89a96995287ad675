"""Whether a run fits: memory per rank at each ZeRO stage, disk for its checkpoints, and what to set; before anything is held."""

import logging
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from medley.data.findings import Finding
from medley.data.prepared import PreparedData
from medley.data.stream import StreamConfig
from medley.encoders.cached import CachedEncoder
from medley.losses import LossConfig
from medley.manifest import absolute_uri, exists, join_uri, read_json
from medley.model import ModelConfig, RecommenderModel
from medley.training.assemble import Assets, assemble_model, assemble_stream, make_plan
from medley.training.config import GradientTrainConfig
from medley.training.memory import PREFERENCE, SETTINGS, Estimate, ModelSize, Offload, estimate
from medley.training.memory_pass import ReadItems, activation_bytes

logger = logging.getLogger(__name__)

PROCESS_BYTES = 1_250_000_000
"""a worker beside its tensors and data: Ray, torch, DeepSpeed, and what the allocator keeps (measured in small runs: 1.2 to 1.3 GB resident)"""
BYTES_PER_TRAIN_ROW = 48
"""users, items, times, values and weights as arrays, and the lists made of them"""
RESERVE = 0.9
"""share of the memory that may be planned for: allocators waste the rest"""
GB = 1e9


@dataclass
class MemoryReport:
    """What one rank would need."""

    size: ModelSize
    micro_batch_size: int
    num_ranks: int
    precision: str
    configured_stage: int
    measured_activations: dict[int, int]
    """rows of a micro-batch → bytes in float32, measured on this CPU"""
    num_train_rows: int
    estimates: list[Estimate] = field(default_factory=list)
    process_bytes: int = 0
    """of a rank in the host's memory beside the model: libraries, train rows, windows of the stream"""
    capacity_bytes: int | None = None
    """of a rank's device; None: unknown"""
    capacity_of: str = ""
    measured_peak_bytes: int | None = None
    """resident peak of rank 0 in an earlier run of this name"""

    def activations(self, micro_batch_size: int) -> int:
        """Bytes of a micro-batch of this size: a straight line through what was measured; half in bf16."""
        (small, small_bytes), (large, large_bytes) = min(self.measured_activations.items()), max(self.measured_activations.items())
        slope = (large_bytes - small_bytes) / (large - small) if large > small else large_bytes / large
        return int(max(0.0, large_bytes + slope * (micro_batch_size - large)) / (2 if self.precision == "bf16" else 1))

    def at(self, stage: int, offload: Offload, train: GradientTrainConfig, micro_batch_size: int) -> Estimate:
        """What a stage takes with a micro-batch of this size."""
        return estimate(
            self.size,
            stage,
            offload,
            is_bf16=self.precision == "bf16",
            num_ranks=self.num_ranks,
            bucket_elements=train.engine.bucket_elements,
            activation_bytes=self.activations(micro_batch_size),
        )

    def needed(self, entry: Estimate) -> int:
        """Bytes of the device that a rank takes: on CPUs with everything else that the process holds."""
        return entry.peak + (self.process_bytes + entry.host if self.capacity_of == "host" else 0)

    def fits(self, entry: Estimate) -> bool:
        """Whether a stage fits, where the capacity is known."""
        return self.capacity_bytes is None or self.needed(entry) <= RESERVE * self.capacity_bytes

    @property
    def recommended(self) -> Estimate | None:
        """The stage to choose among those that fit at the configured micro-batch; None where none does."""
        fitting = [entry for entry in self.estimates if entry.offload == "none" and self.fits(entry)]
        return min(fitting, key=lambda entry: PREFERENCE.index(entry.stage), default=None)

    def figures(self) -> dict[str, Any]:
        """Plain JSON values."""
        stages = [asdict(entry) | {"peak": entry.peak, "fits": self.fits(entry) if self.capacity_bytes is not None else None} for entry in self.estimates]
        recommended = self.recommended.stage if self.recommended is not None else None
        return {**{name: value for name, value in asdict(self).items() if name != "estimates"}, "recommended_stage": recommended, "estimates": stages}

    def text(self) -> Iterator[str]:
        """A table for a terminal."""
        size = self.size
        yield (
            f"memory of one of {self.num_ranks} ranks, GB, estimated | {size.num_parameters:,} parameters, {size.num_trainable:,} trained, "
            f"{self.precision}, micro-batch {self.micro_batch_size:,}"
        )
        yield "  stage  offload                    weights  optimiser  gradients  activations   update     peak     host"
        for entry in self.estimates:
            parts = (entry.weights, entry.optimizer, entry.gradients, entry.activations, entry.update, entry.peak, entry.host)
            cells = "".join(f"{value / GB:{width}.3f}" for value, width in zip(parts, (9, 11, 11, 13, 9, 9, 9), strict=True))
            marks = ("  too large" if not self.fits(entry) else "") + ("  <- configured" if self._is_configured(entry) else "")
            marks += "  <- recommended" if entry is self.recommended else ""
            yield f"  {entry.stage}      {entry.offload:23}{cells}{marks}"
        yield "  peak: weights + optimiser + the larger of gradients with activations, and update; tests saw 0.85 to 1.2 of measured peaks (offload unmeasured)"
        yield f"  a worker's process takes {self.process_bytes / GB:.2f} GB of the host beside the model (libraries, train rows, windows of the stream)"
        if self.measured_peak_bytes is not None:
            configured = next(entry for entry in self.estimates if self._is_configured(entry))
            what = f"{self.measured_peak_bytes / GB:.2f} GB resident at the peak" + ("" if self.capacity_of == "host" else " of the host")
            yield f"  an earlier run of this name: {what}; estimated: {(self.needed(configured)) / GB:.2f} GB"

    def _is_configured(self, entry: Estimate) -> bool:
        return entry.stage == self.configured_stage and entry.offload == "none"


@dataclass(frozen=True)
class Place:
    """Where a rank would live; None: unknown."""

    host_bytes: int | None
    """free memory of the machine divided by the ranks that would share it"""
    gpu_bytes: int | None


def check_memory(
    model: ModelConfig,
    loss: LossConfig,
    train: GradientTrainConfig,
    stream: StreamConfig,
    data: PreparedData,
    assets: Assets,
    seed: int,
    place: Place,
) -> tuple[MemoryReport | None, list[Finding]]:
    """Estimate every stage from the model as it would be built and one micro-batch of the data, and judge the configured one.

    Builds the model once in this process, in float32; one whose tables alone would not fit here is refused instead.
    """
    tables_bytes = 4 * (data.num_items + data.num_users) * model.dimension
    rows_bytes = BYTES_PER_TRAIN_ROW * int(data.manifest["counts"]["num_train"])
    if place.host_bytes is not None and tables_bytes + rows_bytes > RESERVE * place.host_bytes:
        what = f"user and item tables take {tables_bytes / GB:.1f} GB and the train rows, which every rank holds, {rows_bytes / GB:.1f} GB"
        what += f"; a rank's share of the memory is {place.host_bytes / GB:.1f} GB"
        return None, [Finding("error", what, "use fewer workers on a machine, larger machines or a smaller model.dimension")]
    built = assemble_model(model, data, assets, seed, pretrained=False)
    for name, encoder in model.encoders.items():
        if encoder.cache:  # its vectors are read: what was just built is not there in training
            built.encoders[name] = CachedEncoder(built.named_encoders[name].output_dimension)
    rates = {name: encoder.learning_rate for name, encoder in model.encoders.items()}
    report = MemoryReport(
        size=ModelSize.of(built, train.optimizer, rates),
        micro_batch_size=train.micro_batch_size,
        num_ranks=train.min_workers,  # the fewest hold the most
        precision=train.engine.precision,
        configured_stage=train.engine.zero_stage,
        measured_activations=_measure(built, model, loss, train, stream, data, seed, place),
        num_train_rows=len(data.train),
    )
    del built
    encoded = sum(entry["size_bytes"] for name, entry in data.manifest["files"].items() if name.startswith("items/"))
    report.process_bytes = PROCESS_BYTES + BYTES_PER_TRAIN_ROW * len(data.train) + 2 * min(stream.max_window_bytes, encoded)
    report.capacity_of, report.capacity_bytes = ("GPU", place.gpu_bytes) if train.use_gpu else ("host", place.host_bytes)
    report.estimates = [report.at(stage, offload, train, train.micro_batch_size) for stage, offload in SETTINGS if _is_possible(train, stage)]
    return report, judge(report, train)


def _is_possible(train: GradientTrainConfig, stage: int) -> bool:
    return stage > 0 or train.engine.precision != "bf16"


def _measure(
    built: RecommenderModel,
    model: ModelConfig,
    loss: LossConfig,
    train: GradientTrainConfig,
    stream: StreamConfig,
    data: PreparedData,
    seed: int,
    place: Place,
) -> dict[int, int]:
    """Activations at a quarter of the micro-batch and, where memory allows, at the whole."""
    measured: dict[int, int] = {}
    items = ReadItems(data.item_store(), {name: encoder.column for name, encoder in model.encoders.items() if not encoder.cache})
    for num_rows in sorted({max(1, train.micro_batch_size // 4), train.micro_batch_size}):
        expected = 4 * max(measured.values(), default=0)
        if place.host_bytes is not None and expected > RESERVE * place.host_bytes:
            logger.warning("memory | a micro-batch of %d rows would take about %.1f GB here: not run, reckoned from a quarter", num_rows, expected / GB)
            break
        plan = make_plan(train.model_copy(update={"micro_batch_size": num_rows}), data, seed)
        batches = assemble_stream(built, model, loss, data, plan, stream)
        measured[num_rows] = activation_bytes(built, batches.maker.batch((0, 0, 0), items, built.named_encoders))
        batches.close()
    return measured


def judge(report: MemoryReport, train: GradientTrainConfig) -> list[Finding]:
    """Whether the configured stage and micro-batch fit, and what would."""
    configured = next(entry for entry in report.estimates if entry.stage == report.configured_stage and entry.offload == "none")
    needed, where = report.needed(configured), f"a rank's {report.capacity_of} memory"
    if report.capacity_bytes is None:
        what = f"stage {configured.stage} takes about {needed / GB:.2f} GB of {where}, whose size is unknown here"
        return [Finding("warning", what, "compare it with the cluster's GPUs")]
    capacity = f"{where} ({report.capacity_bytes / GB:.2f} GB, of which {RESERVE:.0%} are planned for)"
    recommended = report.recommended
    if report.fits(configured):
        largest = largest_micro_batch(report, train, configured)
        what = f"memory: stage {configured.stage} with micro-batch {train.micro_batch_size:,} takes about {needed / GB:.2f} GB of {capacity}"
        what += f"; micro-batches of up to about {largest:,} rows would fit" if largest else ""
        what += f"; stage {recommended.stage} would fit and exchange a third less" if configured.stage == 3 and recommended and recommended.stage < 3 else ""
        return [Finding("ok", what)]
    what = f"stage {configured.stage} with micro-batch {train.micro_batch_size:,} takes about {needed / GB:.2f} GB of {capacity}"
    if recommended is not None:
        return [Finding("error", what, f"set train.engine.zero_stage={recommended.stage}, which takes about {report.needed(recommended) / GB:.2f} GB")]
    if report.capacity_of == "host" and report.process_bytes > RESERVE * report.capacity_bytes:
        return [Finding("error", what, f"a process alone takes {report.process_bytes / GB:.2f} GB: fewer workers on a machine, or larger machines")]
    smallest = next(entry for entry in report.estimates if entry.stage == 3 and entry.offload == "none")
    rows = largest_micro_batch(report, train, smallest)
    if rows:
        remedy = f"set train.engine.zero_stage=3 and train.micro_batch_size={rows} with more train.num_micro_batches (changes the negatives)"
        return [Finding("error", what, remedy)]
    return [Finding("error", what, "no stage fits at any micro-batch: more workers (stage 3), larger machines, or a smaller model")]


def largest_micro_batch(report: MemoryReport, train: GradientTrainConfig, entry: Estimate) -> int:
    """The largest power of two whose micro-batch would fit at a stage and the data fill; 0 where none fits."""
    fitting = 0
    for power in range(report.num_train_rows.bit_length()):
        if not report.fits(report.at(entry.stage, entry.offload, train, 2**power)):
            break
        fitting = 2**power
    return fitting


def check_disk(size: ModelSize, num_vectors: int, dimension: int, train: GradientTrainConfig, storage: str) -> list[Finding]:
    """Room for the checkpoints of a run: those kept, the best, one being written, and the finished run's own weights.

    num_vectors: users and items, whose vectors of width `dimension` stand in the checkpoint of each epoch.
    """
    scorer = 4 * num_vectors * (dimension + 1)
    one = size.checkpoint_bytes + scorer
    needed = (train.keep_checkpoints + 2) * one + 4 * size.num_parameters + scorer
    what = f"disk: {needed / GB:.2f} GB for checkpoints of {one / GB:.3f} GB each ({train.keep_checkpoints} kept, the best, one being written)"
    path = absolute_uri(storage).removeprefix("file://")
    if "://" in path:
        return [Finding("ok", f"{what} in '{storage}', whose room nobody can ask for")]
    folder = next(parent for parent in (Path(path), *Path(path).parents) if parent.exists())
    free = shutil.disk_usage(folder).free
    if needed > free:
        return [Finding("error", f"{what}; '{folder}' has {free / GB:.2f} GB free", "free some, lower train.keep_checkpoints, or choose another storage")]
    return [Finding("ok", f"{what}; {free / GB:.1f} GB free in '{folder}'")]


def measured_peak(run_uri: str) -> int | None:
    """The resident peak of rank 0 that a finished run of this name wrote down, bytes; None where there is none."""
    place = join_uri(run_uri, "history.json")
    if not exists(place):
        return None
    return int(max(epoch["peak_memory_megabytes"] for epoch in read_json(place)) * 2**20)
