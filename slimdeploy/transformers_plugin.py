"""Lets transformers load packed checkpoints: import this module once, then use `from_pretrained` as ever.

    import slimdeploy.transformers_plugin
    from transformers import AutoModelForImageTextToText

    model = AutoModelForImageTextToText.from_pretrained(FOLDER)

transformers has no entry points for quantisers, hence the import. Loading checks everything that config.json and the
file say of packed weights against each other and against the model; ArtifactError names what does not fit.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NoReturn

import torch
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers.quantizers import HfQuantizer, register_quantization_config, register_quantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from .errors import ArtifactError, ConfigError, ExportError
from .packed import unpack
from .packed_config import METHOD, read_descriptions
from .packed_description import Description
from .packed_file import PACKED_DTYPES
from .packed_linear import PackedLinear
from .packed_tensor import short


@register_quantization_config(METHOD)
class PackedConfig(QuantizationConfigMixin):  # type: ignore[misc]
    """`quantization_config` of config.json. Raises ArtifactError where it is not what the packed format allows."""

    def __init__(self, version: Any = None, layers: Any = None, **_: Any) -> None:
        self.quant_method = METHOD
        self.version = version
        self.layers = layers
        self.descriptions()

    def descriptions(self) -> dict[str, Description]:
        return read_descriptions(self.version, self.layers)


@register_quantizer(METHOD)
class PackedQuantizer(HfQuantizer):  # type: ignore[misc]
    """Puts packed layers in the place of linear ones before weights are loaded, and checks them afterwards."""

    requires_calibration = True
    quantization_config: PackedConfig

    def validate_environment(self, *_: Any, device_map: Any = None, **__: Any) -> None:
        devices = device_map.values() if isinstance(device_map, dict) else ()
        for device in devices:
            if str(device) != "cpu":
                raise ConfigError(f"packed weights are multiplied on the CPU, not on '{device}'; leave device_map out")

    def update_device_map(self, device_map: Any) -> Any:
        # "auto" and its kin would choose among devices of which only one can do it.
        return {"": "cpu"} if isinstance(device_map, str) else device_map

    def _process_model_before_weight_loading(
        self, model: nn.Module, checkpoint_files: Iterable[str] | None = None, **_: Any
    ) -> None:
        descriptions = self.quantization_config.descriptions()
        for name, description in descriptions.items():
            _replace(model, name, PackedLinear.empty(description, _linear(model, name, description).bias))
        if checkpoint_files is not None:
            _compare(descriptions, [Path(file) for file in checkpoint_files])

    def _process_model_after_weight_loading(self, model: nn.Module, **_: Any) -> nn.Module:
        for name in self.quantization_config.layers:
            layer = model.get_submodule(name)
            assert isinstance(layer, PackedLinear)
            layer.prepare(name)
        return model

    def _dequantize(self, model: nn.Module, dtype: torch.dtype | None = None) -> nn.Module:
        for name in self.quantization_config.layers:
            packed = model.get_submodule(name)
            assert isinstance(packed, PackedLinear)
            _replace(model, name, _unpacked(packed, dtype))
        return model

    def is_serializable(self) -> NoReturn:
        # transformers asks before it writes anything; it would write the arrays without what describes them.
        raise ExportError(
            "save_pretrained does not write packed checkpoints; copy the folder that was loaded, or save "
            "model.dequantize(), which has plain weights"
        )

    @property
    def is_trainable(self) -> bool:
        return False

    @property
    def is_compileable(self) -> bool:
        return True


def _linear(model: nn.Module, name: str, description: Description) -> nn.Linear:
    """The linear layer that a packed one stands for."""
    try:
        linear = model.get_submodule(name)
    except AttributeError:
        raise ArtifactError(
            f"packed layer {short(name)} in config.json: the model has no such layer; export the model again"
        ) from None
    if not isinstance(linear, nn.Linear):
        raise ArtifactError(
            f"packed layer {short(name)} in config.json: it is a {type(linear).__name__} in the model, not linear; "
            "export the model again"
        )
    if (linear.out_features, linear.in_features) != (description.rows, description.columns):
        raise ArtifactError(
            f"packed layer {short(name)} in config.json: it is {description.rows} x {description.columns}, but "
            f"{linear.out_features} x {linear.in_features} in the model; export the model again"
        )
    return linear


def _replace(model: nn.Module, name: str, layer: nn.Module) -> None:
    path, _, own_name = name.rpartition(".")
    parent: Any = model.get_submodule(path)
    setattr(parent, own_name, layer)
    # Some families (SigLIP) fill weights by reaching from a module into its layers, where a packed one has none.
    parent._is_hf_initialized = True


def _unpacked(layer: PackedLinear, dtype: torch.dtype | None) -> nn.Linear:
    linear = nn.Linear(layer.in_features, layer.out_features, layer.bias is not None, device="meta")
    linear.weight = nn.Parameter(torch.from_numpy(unpack(layer.packed())).to(dtype))
    linear.register_parameter("bias", layer.bias)
    return linear


def _compare(descriptions: Mapping[str, Description], files: Iterable[Path]) -> None:
    """Raises ArtifactError where the files have not exactly the arrays described; transformers would make some up."""
    stored = {name: array for file in files for name, array in _arrays_in(file).items()}
    for name, description in descriptions.items():
        for part, expected in description.arrays().items():
            found = stored.get(f"{name}.{part}")
            wanted = None if 0 in expected[1] else expected
            if found != wanted:
                raise ArtifactError(
                    f"packed tensor {short(name)}: its array '{part}' is {_words(found)}, config.json says "
                    f"{_words(wanted)}; export the model again"
                )


def _arrays_in(file: Path) -> dict[str, tuple[str, tuple[int, ...]]]:
    """dtype and shape of every tensor in a file, by its name."""
    arrays = {}
    try:
        with safe_open(file, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 - it is no dictionary
                view = tensors.get_slice(name)
                arrays[name] = (PACKED_DTYPES.get(view.get_dtype(), view.get_dtype()), tuple(view.get_shape()))
    except (SafetensorError, OSError) as error:
        raise ArtifactError(
            f"{file} is truncated or no safetensors file ({error}), and packed weights are read from nothing else; "
            "export the model again"
        ) from None
    return arrays


def _words(array: tuple[str, tuple[int, ...]] | None) -> str:
    return f"{array[0]} {list(array[1])}" if array else "not there"
