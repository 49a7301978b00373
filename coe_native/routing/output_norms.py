"""OutputNorms: activation norms of the experts, summed over the tokens that chose them."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Sums = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class OutputNorms:
    """Activation norms of the experts, all float64 [moe_layer, expert].

    The norm is the Euclidean norm of an expert's output, its bias and scale included. For models that weight the
    experts' input instead of their output (Llama 4), both sums are of the output as it is.

    Attributes:
        norm_sum: Sum of the norms over the tokens that chose the expert.
        weighted_norm_sum: The same with each norm multiplied by the router's weight: the length of what the expert
            added to the layer's output, except for a constant scale of the layer and before a projection back from
            a latent state.
        norm_sum_rest: What rounding to float64 left out of `norm_sum`; zero by default.
        weighted_norm_sum_rest: The same for `weighted_norm_sum`.
    """

    norm_sum: Sums = field(repr=False)
    weighted_norm_sum: Sums = field(repr=False)
    norm_sum_rest: Sums = field(default_factory=lambda: np.zeros(()), repr=False)
    weighted_norm_sum_rest: Sums = field(default_factory=lambda: np.zeros(()), repr=False)

    def __post_init__(self) -> None:
        for name in ("norm_sum_rest", "weighted_norm_sum_rest"):
            if getattr(self, name).ndim == 0:
                object.__setattr__(self, name, np.zeros(self.norm_sum.shape))
