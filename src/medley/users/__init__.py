"""User number, attributes and history of item vectors → one user vector.

A configuration has `build(train_count_V, num_categories, dimension)`, `history_length` and `columns`; the module's forward takes user numbers,
attribute categories, history vectors and their mask, and returns (B, dimension). To add one: write the file, add it to the unions below.
"""

from typing import Annotated

from pydantic import Field

from medley.users.attributes import AttributesUserConfig
from medley.users.history_mean import HistoryMeanUserConfig
from medley.users.id import IdUserConfig
from medley.users.sum import SumUserConfig

UserConfig = Annotated[IdUserConfig | AttributesUserConfig | HistoryMeanUserConfig | SumUserConfig, Field(discriminator="kind")]
