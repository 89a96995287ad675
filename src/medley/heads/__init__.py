"""User vector × item vector → score.

A configuration has `build(num_users, num_items, mean_value)`. To add one: write the file, add it to the union below.
"""

from medley.heads.mf import MatrixFactorisationConfig

HeadConfig = MatrixFactorisationConfig
"""A union once there are two."""
