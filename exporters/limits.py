"""What no export of today can hold, told before hours of search."""

from collections.abc import Mapping

from ..errors import ExportError
from ..model import Model

# Their picture size is fixed, and their forward needs pixel values only.
_FIXED_SIZE = ("clip_vision_model", "siglip_vision_model")
# By format: the families whose inputs, graphs and weight names it was made for, and their vision towers.
VISION_TOWERS: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "onnx": {
        "llava": _FIXED_SIZE,
        "llava_next": _FIXED_SIZE,
        "idefics3": ("idefics3_vision",),
        "smolvlm": ("smolvlm_vision",),
        "qwen2_5_vl": ("qwen2_5_vl_vision",),
        "qwen3_vl": ("qwen3_vl_vision",),
        "paligemma": ("siglip_vision_model",),
        "gemma3": ("siglip_vision_model",),
    },
    "vllm": {"llava": _FIXED_SIZE},
}


def refuse_quantized(model: Model) -> None:
    """Raises ExportError for a model whose weights are not plain numbers any more."""
    quantization = getattr(model.config, "quantization_config", None)
    if quantization is not None:
        method = quantization.get("quant_method") if isinstance(quantization, dict) else quantization.quant_method
        raise ExportError(f"{model.name} is quantised already ('{method}'); start from its unquantised checkpoint")


def require_known_tower(model: Model, format_name: str) -> None:
    """Raises ExportError for a family, a vision tower or a size of tiles that the format was not made for."""
    families = VISION_TOWERS[format_name]
    if model.arch.model_type not in families:
        raise ExportError(
            f"{model.name} is of the family '{model.arch.model_type}', but export format '{format_name}' holds "
            f"{', '.join(families)}; set export.format = 'checkpoint'"
        )
    tower, known = model.config.vision_config.model_type, families[model.arch.model_type]
    if tower not in known:
        raise ExportError(
            f"{model.name} has a vision tower of type '{tower}', but export format '{format_name}' knows "
            f"{', '.join(known)}; set export.format = 'checkpoint'"
        )
    tile = (getattr(model.processor.image_processor, "max_image_size", None) or {}).get("longest_edge")
    if tile is not None and tile != (size := model.config.vision_config.image_size):
        raise ExportError(
            f"{model.name} has pictures cut into tiles of {tile} pixels, but export format '{format_name}' holds those "
            f"of the size in its vision_config, {size}; set export.format = 'checkpoint'"
        )
