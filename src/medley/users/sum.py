"""The sum of several user models: p_u = (id) + (attributes) + (history)."""

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from medley.users.attributes import AttributesUserConfig
from medley.users.history_mean import HistoryMeanUserConfig
from medley.users.id import IdUserConfig

UserPart = Annotated[IdUserConfig | AttributesUserConfig | HistoryMeanUserConfig, Field(discriminator="kind")]


class SumUserConfig(BaseModel):
    """Parts added up."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["sum"] = "sum"
    parts: tuple[UserPart, ...] = Field(min_length=1)
    """the user models to add"""

    @property
    def history_length(self) -> int:
        """The longest history that a part wants."""
        return max(part.history_length for part in self.parts)

    @property
    def columns(self) -> tuple[str, ...]:
        """Attribute columns of all parts."""
        return tuple(sorted({column for part in self.parts for column in part.columns}))

    def build(self, train_count_V: Tensor, num_categories: Mapping[str, int], dimension: int) -> "SumUser":
        """The module."""
        return SumUser([part.build(train_count_V, num_categories, dimension) for part in self.parts])


class SumUser(nn.Module):
    """Every part sees the same inputs."""

    def __init__(self, parts: list[nn.Module]):
        super().__init__()
        self.parts = nn.ModuleList(parts)

    def forward(self, user_index_B: Tensor, attributes_B: Mapping[str, Tensor], history_BLD: Tensor, history_mask_BL: Tensor) -> Tensor:
        """(B, D)."""
        vectors = [part(user_index_B, attributes_B, history_BLD, history_mask_BL) for part in self.parts]
        return sum(vectors[1:], start=vectors[0])
