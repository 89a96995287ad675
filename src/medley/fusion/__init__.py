"""Several modality vectors and their presence → one item vector.

A configuration has `build(input_dimensions, dimension)`; the module's forward takes modality → vectors (U, D_m) and modality → presence (U,)
and returns (U, dimension). To add one: write the file, add it to the union below.
"""

from typing import Annotated

from pydantic import Field

from medley.fusion.concat import ConcatFusionConfig
from medley.fusion.gated import GatedFusionConfig

FusionConfig = Annotated[ConcatFusionConfig | GatedFusionConfig, Field(discriminator="kind")]
