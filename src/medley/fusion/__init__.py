"""Several modality vectors and their presence → one item vector.

A configuration has `build(input_dimensions, dimension)`; the module's forward takes modality → vectors (U, D_m) and modality → presence (U,)
and returns (vectors (U, dimension), tokens (U, M, width), presence (U, M)), see `tokens.py`. To add one: write the file, add it to the union below.
"""

from typing import Annotated

from pydantic import Field

from medley.fusion.attention import AttentionFusionConfig
from medley.fusion.bilinear import BilinearFusionConfig
from medley.fusion.concat import ConcatFusionConfig
from medley.fusion.gated import GatedFusionConfig
from medley.fusion.late import LateFusionConfig
from medley.fusion.mean import MeanFusionConfig

FusionConfig = Annotated[
    ConcatFusionConfig | MeanFusionConfig | GatedFusionConfig | AttentionFusionConfig | LateFusionConfig | BilinearFusionConfig,
    Field(discriminator="kind"),
]
