"""Settings that every encoder shares."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class TrainableSettings(BaseModel):
    """Base of the encoders' configurations."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    train: Literal["full", "frozen"] = "full"
    """full: every weight is trained; frozen: none is."""
    learning_rate: float | None = Field(default=None, gt=0)
    """None: the run's learning rate. Pretrained encoders want 10 to 100 times less."""
