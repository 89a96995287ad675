"""What the configurations of all losses share."""

from pydantic import BaseModel, ConfigDict, Field


class AlignmentConfig(BaseModel):
    """A contrastive term between the modalities of an item, added to the loss (alignment.py)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    weight: float = Field(default=0.1, gt=0)
    """factor of the term, which is a mean over pairs of modalities and items, for every train row"""
    temperature: float = Field(default=0.1, gt=0)
    """cosines are divided by it"""


class LossSettings(BaseModel):
    """Base of the losses' configurations."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    alignment: AlignmentConfig | None = None
    """draw the modalities of an item together, those of different items apart; null: no such term"""
