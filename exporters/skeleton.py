"""A model without weights, to be traced: a graph follows from shapes, and holding the weights twice is what no memory
is large enough for.
"""

import copy
from dataclasses import replace
from typing import Any

from torch._subclasses.fake_tensor import FakeTensorMode
from transformers.initialization import no_init_weights

from ..model import Model


def without_weights(model: Model, mode: FakeTensorMode) -> Model:
    """The same modules under the same names; parameters have shapes only, buffers are the model's own.

    The configuration is a copy. What the parts are called with must be of the same mode.
    """
    with mode, no_init_weights():
        module: Any = type(model.pretrained)(copy.deepcopy(model.config))
        module.tie_weights()
    for name, buffer in model.module.named_buffers():
        owner, _, leaf = name.rpartition(".")
        setattr(module.get_submodule(owner), leaf, buffer)
    return replace(model, module=module.eval())
