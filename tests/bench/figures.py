"""What all benches print beside their figures."""

import os
import platform
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch


def quartiles(values: Sequence[float], digits: int = 3) -> list[float]:
    """Lower quartile, median, upper quartile."""
    return [round(float(value), digits) for value in np.quantile(values, [0.25, 0.5, 0.75])]


def machine() -> dict[str, Any]:
    """Where the figures were taken."""
    return {"num_cpus": os.cpu_count(), "machine": platform.processor() or platform.machine(), "torch": torch.__version__}
