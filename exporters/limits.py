"""What no export of today can hold, told before hours of search."""

from ..errors import ExportError
from ..model import Model

# Whose inputs, graphs and weight names the formats "onnx" and "vllm" were made for.
FAMILIES = ("llava",)
# Their picture size is fixed, and their forward needs pixel values only.
VISION_TOWERS = ("clip_vision_model", "siglip_vision_model")


def refuse_quantized(model: Model) -> None:
    """Raises ExportError for a model whose weights are not plain numbers any more."""
    quantization = getattr(model.config, "quantization_config", None)
    if quantization is not None:
        method = quantization.get("quant_method") if isinstance(quantization, dict) else quantization.quant_method
        raise ExportError(f"{model.name} is quantised already ('{method}'); start from its unquantised checkpoint")


def require_known_tower(model: Model, format_name: str) -> None:
    """Raises ExportError for a family or a vision tower whose inputs or weight names the format was not made for."""
    if model.arch.model_type not in FAMILIES:
        raise ExportError(
            f"{model.name} is of the family '{model.arch.model_type}', but export format '{format_name}' holds "
            f"{', '.join(FAMILIES)}; set export.format = 'checkpoint'"
        )
    tower = model.config.vision_config.model_type
    if tower not in VISION_TOWERS:
        raise ExportError(
            f"{model.name} has a vision tower of type '{tower}', but export format '{format_name}' knows "
            f"{', '.join(VISION_TOWERS)}; set export.format = 'checkpoint'"
        )
