"""Settings of a hyperparameter search and of an ablation."""

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, model_validator


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


class AblationConfig(BaseModel):
    """What jobs.ablation leaves out and how it trains what is left, on vectors of the run's encoders."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    fusions: tuple[str, ...] = ()
    """further kinds of fusion, with their default settings, beside the run's own"""
    seeds: tuple[NonNegativeInt, ...] = Field(default=(0,), min_length=1)
    """seeds of the first weights and the order; every cell of the table is trained with each, on the same data"""
    epochs: int | None = Field(default=None, ge=1)
    """passes over the interactions, of which the best by train.metric is kept; null: train.epochs"""
    split: Literal["valid", "test"] = "test"
    """split that the table is measured on; the best epoch is always chosen on valid"""
    concurrent: int = Field(default=2, ge=1)
    """cells trained at a time, one process and one CPU each"""
