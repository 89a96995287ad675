"""User number, attributes and history of items → one user vector.

A configuration has `build(train_count_V, num_categories, num_items, dimension, table)` (`table` makes tables of users or items, see `table.py`),
`history_length` and `columns`; the module's forward takes user
numbers, attribute categories, history vectors, their item numbers and their mask, and returns fields (B, F, dimension), whose sum is the user
vector, and a penalty per row (see `fields.py`). Histories stand oldest first, padding at the end.
To add one: write the file, add it to the union in `sum.py`.
"""

from typing import Annotated

from pydantic import Field

from medley.users.sum import SumUserConfig, UserPart

UserConfig = Annotated[UserPart | SumUserConfig, Field(discriminator="kind")]
