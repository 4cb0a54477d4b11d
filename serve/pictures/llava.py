"""LLaVA-1.5: a picture as one image, and how many rows a tower gives for it."""

from .picture import Picture, Pictures
from .settings import ModelSettings, agreed
from .whole import KINDS, fit_of, side_of

# Rows that a tower gives before those of the patches: CLIP's class token.
_ROWS_BEFORE_PATCHES = {"clip_vision_model": 1, "siglip_vision_model": 0}


def load_llava(said: ModelSettings) -> Pictures:
    settings = said.image_settings(KINDS)
    fit = fit_of(settings)
    tokens = rows_of_image(said, side_of(fit, said, settings))
    marker = said.token("image_token")
    return Pictures(marker, lambda image: Picture({"pixel_values": fit(image)}, marker * tokens, tokens))


def rows_of_image(said: ModelSettings, side: int) -> int:
    """Features of one square image: those of its patches, with the class token or without.

    A processor that says otherwise than the model would ask for another number of tokens.
    """
    vision = said.vision
    strategy, before = "vision_feature_select_strategy", "num_additional_image_tokens"
    processor = said.processor_settings("image_token", "patch_size", strategy, before)
    agreed("the side of a patch", vision.says("patch_size", vision.number("patch_size")), processor.says("patch_size"))
    selected = agreed("which features are taken", said.config.says(strategy), processor.says(strategy))
    if selected not in ("default", "full"):
        raise said.config.error(strategy, "this server knows 'default' and 'full'")
    tower = vision.values.get("model_type")
    if tower not in _ROWS_BEFORE_PATCHES:
        raise vision.error("model_type", f"this server knows the towers {', '.join(_ROWS_BEFORE_PATCHES)}")
    rows = _ROWS_BEFORE_PATCHES[tower]
    agreed("how many features stand before the patches'", vision.says("model_type", rows), processor.says(before))
    token = said.token("image_token")
    agreed("the image token", said.config.says("image_token_id", token), processor.says("image_token"))
    dropped = 1 if selected == "default" else 0
    return (side // vision.number("patch_size")) ** 2 + rows - dropped
