"""Settings that every encoder shares."""

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator


class TrainableSettings(BaseModel):
    """Base of the encoders' configurations."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    train: Literal["full", "frozen"] = "full"
    """full: every weight is trained; frozen: none is."""
    learning_rate: float | None = Field(default=None, gt=0)
    """None: the run's learning rate. Pretrained encoders want 10 to 100 times less."""
    cache: bool = False
    """True, for a frozen encoder: training, validation and search read the vectors that jobs.encode computed once, with the same result"""

    @model_validator(mode="after")
    def _check_cache(self) -> Self:
        if self.cache and self.train != "frozen":
            raise ValueError(f"train: frozen where cache is true (with train: {self.train} the vectors change at every step)")
        return self
