"""Families of vision-language models: where each keeps its towers, projector and blocks, and what the hub calls them.

Data only; `slimdeploy.model` walks over modules with it. A new family is one file here and one name in `arch_for`.
"""

from dataclasses import dataclass
from typing import Any

from ..errors import ModelError


@dataclass(frozen=True)
class Arch:
    """Module paths of one family, as transformers names them.

    feature_layer: the configuration's key that says which hidden state of the vision tower the projector reads (an
    index or several; 0 is the embeddings, negative counts from the end): blocks after it are dead weight.
    hub_prefixes: (prefix here, prefix on the hub and in vLLM's loader) of every weight name; the first that fits.
    """

    model_type: str
    vision_tower: str
    vision_blocks: str
    projector: str
    language_model: str
    language_blocks: str
    lm_head: str
    feature_layer: str
    hub_prefixes: tuple[tuple[str, str], ...]

    def hub_name(self, name: str) -> str:
        """The name that a weight has in a checkpoint on the hub."""
        for ours, theirs in self.hub_prefixes:
            if name.startswith(ours):
                return theirs + name.removeprefix(ours)
        raise ModelError(f"weight '{name}' has no name on the hub for family '{self.model_type}'")


def arch_for(config: dict[str, Any], source: str) -> Arch:
    """The family of a checkpoint, by the `model_type` in its config.json. `source` names it in errors."""
    from .llava import LLAVA

    supported = {arch.model_type: arch for arch in (LLAVA,)}
    model_type = config.get("model_type")
    if not isinstance(model_type, str) or model_type not in supported:
        raise ModelError(
            f"{source} is of the architecture '{model_type}', which slimdeploy does not know; "
            f"supported: {', '.join(supported)}"
        )
    return supported[model_type]
