"""What a checkpoint's config.json says of its packed weights, under `quantization_config`.

It repeats the description that every packed tensor has in the file, so that a model can be laid out before the file is
opened. Knows no torch and no transformers.
"""

from collections.abc import Mapping
from typing import Any, Final

from .errors import ArtifactError
from .packed_description import Description
from .packed_file import VERSION
from .packed_tensor import PackedTensor, short

METHOD: Final = "slimdeploy"
"""`quant_method` of a packed checkpoint."""


def quantization_config(tensors: Mapping[str, PackedTensor]) -> dict[str, Any]:
    """What config.json of a checkpoint with these packed weights holds, by the names of the layers."""
    layers = {name: Description.of(packed).to_json() for name, packed in tensors.items()}
    return {"quant_method": METHOD, "version": VERSION, "layers": layers}


def read_descriptions(version: object, layers: object) -> dict[str, Description]:
    """The packed layers of a configuration by name. Raises ArtifactError that names what is wrong in config.json."""
    if version != VERSION:
        raise ArtifactError(
            f"config.json is of version {short(version)} of the packed format, and this slimdeploy reads {VERSION}; "
            "upgrade it"
        )
    if not isinstance(layers, dict) or not layers:
        raise ArtifactError(
            f"config.json has {short(layers)} for packed layers, no table of them; export the model again"
        )
    return {
        name: Description.from_json(said, f"packed layer {short(name)} in config.json") for name, said in layers.items()
    }
