"""User vector × item vector → score.

A configuration has `build(num_users, num_items, dimension, mean_value, table)` (`table` makes tables of users or items, see `users/table.py`). The
module turns the fields of items and users, each (rows, F, D), into vectors and biases (`item_side`, `user_side`); forward is always their inner
product plus biases, so every head ends in a Scorer.
To add one: write the file, add it to the union below.
"""

from typing import Annotated

from pydantic import Field

from medley.heads.fm import FactorisationMachine, FactorisationMachineConfig
from medley.heads.mf import MatrixFactorisation, MatrixFactorisationConfig

HeadConfig = Annotated[MatrixFactorisationConfig | FactorisationMachineConfig, Field(discriminator="kind")]
Head = MatrixFactorisation | FactorisationMachine
