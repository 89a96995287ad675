"""What a check found: the words of `jobs.doctor`, shared by the rooms' checks."""

from dataclasses import dataclass
from typing import Literal

from medley.schema import InputError

Level = Literal["ok", "warning", "error"]


@dataclass(frozen=True)
class Finding:
    """One line of a check-up."""

    level: Level
    """ok: as it should be; warning: work will start, look at it; error: work would be refused or fail"""
    what: str
    """what was looked at and what it is, with values and places"""
    remedy: str = ""
    """what to do; empty where nothing is to be done"""
    is_failure: bool = False
    """whether a check itself failed (storage, network), rather than the user's configuration or data"""

    @classmethod
    def of_mistake(cls, error: InputError) -> "Finding":
        """What a door would have refused with."""
        return cls("error", f"{error.got}; expected {error.expected}", error.remedy)

    def __str__(self) -> str:
        return f"{self.level:7} {self.what}" + (f"; {self.remedy}" if self.remedy else "")
