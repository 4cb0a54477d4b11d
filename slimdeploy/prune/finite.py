"""Weights that can be computed with."""

from torch import Tensor

from ..errors import PruneError
from ..model import Model


def finite_weight(model: Model, name: str) -> Tensor:
    """The weights of a layer, (out, in). Raises PruneError where one is NaN or infinite."""
    weight = model.linear(name).weight.detach()
    if not all(bool(extreme.isfinite()) for extreme in weight.aminmax()):  # NaN is both
        raise PruneError(f"the weights of {name} hold NaN or infinity; the checkpoint is damaged")
    return weight
