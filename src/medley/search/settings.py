"""Settings of a hyperparameter search."""

from typing import Self

from pydantic import BaseModel, ConfigDict, Field, model_validator


class SearchConfig(BaseModel):
    """A search over the space file; its trials read vectors of a short base run."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    space: str | None = None
    """space file that jobs.pipeline searches before it trains; null: it trains the configuration as it is"""
    base_epochs: int = Field(default=3, ge=1)
    """epochs of the base run that trains encoders from scratch before the search"""
    num_trials: int = Field(default=16, ge=1)
    """trials in all; the first is the configuration as it is"""
    trial_epochs: int = Field(default=10, ge=1)
    """most epochs of one trial"""
    grace_epochs: int = Field(default=2, ge=1)
    """epochs before ASHA may stop a trial"""
    reduction_factor: int = Field(default=3, ge=2)
    """ASHA keeps one in so many trials at each rung"""
    concurrent_trials: int = Field(default=2, ge=1)
    """trials at a time, one process and one CPU each"""

    @model_validator(mode="after")
    def _check_grace(self) -> Self:
        if self.grace_epochs > self.trial_epochs:
            raise ValueError(f"grace_epochs of at most trial_epochs ({self.grace_epochs} > {self.trial_epochs})")
        return self
