"""The steps of `prepare` over interactions: cleaned, settled, split, left out by rules, numbered, cut into files."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from medley.data.assign import assign_part, has_core, learn_core, summed
from medley.data.attributes import Attributes, scatter_attributes
from medley.data.base import BaseSet
from medley.data.config import DataConfig
from medley.data.interactions import EventRules, Figures, clean_piece, sum_figures
from medley.data.keep import TRAIN_TABLE, keep_part
from medley.data.leaks import check_time_order
from medley.data.numbering import ItemNumbers, scatter_ids
from medley.data.outputs import SAMPLES_PER_FILE, file_bounds, number_part
from medley.data.partitions import num_partitions
from medley.data.selection import select_ranks
from medley.data.settle import KEYS_TABLE, Sources, settle_part
from medley.data.split import TEST, TRAIN, VALID, cut_ranks, has_test, split_kind
from medley.data.steps import Report, StepFiles, Steps
from medley.data.tables import Tables, pieces_of
from medley.data.validate import Quarantine
from medley.data.values import ValuesConfig, train_statistics
from medley.schema import SPLIT, SPLITS, USER_ID, USER_INDEX, InputError


@dataclass(frozen=True)
class Plan:
    """What is prepared, and in which sizes."""

    steps: Steps
    tables: Tables
    base: BaseSet | None
    config: DataConfig
    seed: int
    rows_per_partition: int
    rows_per_file: int

    @property
    def num_base(self) -> int:
        """Users of the base set."""
        return self.base.num_users if self.base else 0

    @property
    def num_parts(self) -> int:
        """Parts that the users are cut into."""
        num_rows = self.tables.num_rows
        return num_partitions(max(num_rows["interactions"], num_rows["users"], self.num_base), self.rows_per_partition)

    @property
    def parts(self) -> list[tuple[int]]:
        """Tasks of a step over the parts."""
        return [(part,) for part in range(self.num_parts)]


@dataclass(frozen=True)
class PreparedInteractions:
    """The finished interactions, in files of the step `numbered`."""

    numbered: StepFiles
    num_files: tuple[int, ...]
    """of each split: its tables come after those of the splits before it, then the tables of users"""
    num_rows_of: tuple[int, ...]
    num_users: int
    train_count_N: np.ndarray
    has_timestamps: bool
    value_statistics: dict[str, Any]


@dataclass(frozen=True)
class _Settled:
    """Clean rows without repeats, in files of the step `settled`, and how they are to be split."""

    files: StepFiles
    sources: Sources
    num_rows: int
    kind: str
    held_out_N: np.ndarray
    figures: Figures


@dataclass(frozen=True)
class _Kept:
    """What the rules leave of them, in files of the step `kept`, and figures of all parts together."""

    files: StepFiles
    num_rows_of: tuple[int, ...]
    num_new_users: list[int]
    """of each part"""
    has_timestamps: bool
    value_statistics: dict[str, Any]


def prepare_interactions(plan: Plan, items: ItemNumbers) -> PreparedInteractions:
    """All that is done with interactions, but for their files."""
    base_users, attributes = _scatter_users(plan)
    settled = _settle(plan, items)
    plan.steps.quarantine.check_budget(plan.config.quarantine, plan.tables.num_rows)
    kept = _keep(plan, settled, _assign(plan, settled), items.num_items, base_users)
    return _number(plan, settled, kept, items.num_items, base_users, attributes)


def _scatter_users(plan: Plan) -> tuple[StepFiles | None, Attributes | None]:
    """(the base's users, the users table) in parts."""
    base_users = attributes = None
    if plan.base:
        base_users = scatter_ids(plan.steps, "base_users", plan.base.user_files, [USER_ID, USER_INDEX], plan.num_parts, plan.rows_per_partition)
    if plan.tables.users_schema is not None:
        columns = [USER_ID, *(name for name in plan.tables.users_schema.names if name != USER_ID)]
        attributes = scatter_attributes(plan.steps, plan.tables.users, columns, plan.num_parts, plan.rows_per_partition)
    return base_users, attributes


def _settle(plan: Plan, items: ItemNumbers) -> _Settled:
    """Clean rows by part of their users, repeats and conflicts settled."""
    steps, tables, config = plan.steps, plan.tables, plan.config
    rules = EventRules(config.events, config.target_events, config.behaviour)
    rules.check_columns(tables.interactions_schema.names)
    pieces = pieces_of(tables.interactions, plan.rows_per_partition)
    found = steps.run("clean", clean_piece, [(piece,) for piece in pieces], tables, items, rules, plan.num_parts)
    figures = sum_figures(found)
    if figures.num_rows == 0:
        raise _nothing_left(steps.quarantine)
    kind = split_kind(config.split, figures.num_rows, figures.num_timed, figures.num_split)
    if kind == "shipped" and figures.bad_splits:
        raise InputError(f"column '{SPLIT}' of the interactions holds {figures.bad_splits}", f"one of {', '.join(SPLITS)} in every row", "correct the column")
    held_out_N = items.held_out()
    if not has_test(kind, config.split, figures.num_test):
        held_out_N = np.where(held_out_N == TEST, VALID, held_out_N)

    sources = Sources(tables.interactions, pieces)
    clean, has_split = steps.files("clean", found), figures.num_split == figures.num_rows
    found = steps.run("settled", settle_part, plan.parts, clean, sources, config.conflicts, has_split, kind, plan.seed)
    if config.target_events and sum(report["num_targets"] for report in found) == 0:
        raise InputError(
            f"no interaction is one of data.target_events={list(config.target_events)}", "some of them", "see the events of the table; correct the setting"
        )
    return _Settled(steps.files("settled", found), sources, sum(report["num_rows"] for report in found), kind, held_out_N, figures)


def _assign(plan: Plan, settled: _Settled) -> StepFiles:
    """The split of each row, bots left out."""
    config, kind, figures = plan.config, settled.kind, settled.figures
    cuts: list[int] = []
    if kind in ("time", "random"):
        bounds = (figures.first_time, figures.last_time) if kind == "time" else (0, 2**63 - 1)
        cuts = select_ranks(plan.steps, "cuts", settled.files, KEYS_TABLE, settled.num_rows, bounds, cut_ranks(config.split, settled.num_rows))
    has_pairs = config.behaviour.drop_one_off_items or has_core(config.k_core)
    shared = (settled.files, settled.sources, kind, config.split, cuts, settled.held_out_N, config.behaviour, has_pairs)
    return plan.steps.files("assigned", plan.steps.run("assigned", assign_part, plan.parts, *shared))


def _keep(plan: Plan, settled: _Settled, assigned: StepFiles, num_items: int, base_users: StepFiles | None) -> _Kept:
    """What one-off items and the core leave, proved to be in order of time."""
    config = plan.config
    masks = learn_core(plan.steps, assigned, num_items, config.behaviour, config.k_core)
    sample_every = max(1, plan.rows_per_file // SAMPLES_PER_FILE) if settled.num_rows > plan.rows_per_file else 0
    shared = (base_users, plan.num_base, settled.sources, settled.held_out_N, masks, config.k_core, config.values, sample_every)
    found = plan.steps.run("kept", keep_part, plan.parts, settled.files, assigned, *shared)
    num_rows_of = tuple(sum(report["num_rows_of"][number] for report in found) for number in range(len(SPLITS)))
    if sum(num_rows_of) == 0:
        raise _nothing_left(plan.steps.quarantine)
    _check_parts(num_rows_of, may_lack_test=not has_test(settled.kind, config.split, 0))
    if settled.kind == "time":
        ranges = [[report["time_ranges"][number] for report in found] for number in range(len(SPLITS))]
        check_time_order([(min(first for first, _ in each), max(last for _, last in each)) for each in ranges])
    has_timestamps = sum(report.get("num_timed_train", 0) for report in found) == num_rows_of[TRAIN]
    num_new_users = [report["num_new_users"] for report in found]
    return _Kept(plan.steps.files("kept", found), num_rows_of, num_new_users, has_timestamps, _value_statistics(found, config.values))


def _number(plan: Plan, settled: _Settled, kept: _Kept, num_items: int, base_users: StepFiles | None, attributes: Attributes | None) -> PreparedInteractions:
    """Users numbered, values normalised, rows proved apart and cut into files."""
    offsets = np.concatenate([[0], np.cumsum(kept.num_new_users)]).tolist()
    bounds = file_bounds(kept.files, offsets, plan.num_base, kept.num_rows_of, plan.rows_per_file)
    statistics, values = kept.value_statistics, plan.config.values
    shared = (attributes, base_users, offsets, plan.num_base, plan.rows_per_partition, settled.kind, settled.held_out_N)
    found = plan.steps.run("numbered", number_part, plan.parts, settled.files, kept.files, *shared, values, statistics.get("train_mean"), bounds)
    train_count_N = summed(kept.files, TRAIN_TABLE, num_items)
    num_files = tuple(len(own) + 1 for own in bounds)
    numbered, num_users = plan.steps.files("numbered", found), plan.num_base + offsets[-1]
    return PreparedInteractions(numbered, num_files, kept.num_rows_of, num_users, train_count_N, kept.has_timestamps, statistics)


def _value_statistics(reports: Sequence[Report], config: ValuesConfig) -> dict[str, Any]:
    """What the parts say of the values together; nothing where there is no such column."""
    if not any("values" in report for report in reports):
        return {}
    clipped = {"num_clipped": sum(report["num_clipped"] for report in reports)} if config.clip is not None else {}
    return {**clipped, **train_statistics([report["values"] for report in reports])}


def _check_parts(num_rows_of: Sequence[int], may_lack_test: bool) -> None:
    for number, name in enumerate(SPLITS):
        if num_rows_of[number] == 0 and not (may_lack_test and number == TEST):
            raise InputError(
                f"the '{name}' split is empty ({sum(num_rows_of)} interactions in all)", "interactions in every split", "change data.split or add data"
            )


def _nothing_left(quarantine: Quarantine) -> InputError:
    reasons = "; ".join(f"{reason}: {count}" for reason, count in quarantine.by_reason().items())
    return InputError(f"no interaction is left after cleaning ({reasons})", "known items, weighted events", "check the ids and the settings under data")
