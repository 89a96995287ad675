"""Settings of `prepare`."""

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from medley.data.base import base_identity
from medley.data.behaviour import BehaviourConfig, CoreConfig
from medley.data.repeats import ConflictRule
from medley.data.split import SplitConfig
from medley.data.validate import QuarantineConfig
from medley.data.values import ValuesConfig
from medley.media import MediaConfig


class DataConfig(BaseModel):
    """What `prepare` does with the tables."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    split: SplitConfig = SplitConfig()
    events: dict[str, float] = Field(default_factory=dict)
    """weight of each event kind, 0 drops it; empty: every event weighs 1"""
    target_events: tuple[str, ...] = ()
    """event kinds that count as relevant in evaluation; empty: all that are kept"""
    conflicts: ConflictRule = "last"
    """which of several rows with one user, item, time and split stays: the last or first in the tables, the one with the largest value; error: none may be"""
    behaviour: BehaviourConfig = BehaviourConfig()
    k_core: CoreConfig = CoreConfig()
    values: ValuesConfig = ValuesConfig()
    quarantine: QuarantineConfig = QuarantineConfig()
    media: MediaConfig = MediaConfig()
    base: str | None = None
    """URI of an earlier prepared set (PREPARED_ROOT/FINGERPRINT) whose users and items keep their numbers; new ones follow, in the same order as
    without it. An item that left the tables stays in the catalogue without content or title, a user without interactions stays in the list. null:
    numbers from nothing"""

    @property
    def identity(self) -> list[Any]:
        """What decides the prepared bytes beside the tables and the seed; an InputError where the base is none."""
        return [self.model_dump(mode="json", exclude={"base"}), base_identity(self.base) if self.base else None]
