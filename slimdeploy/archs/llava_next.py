"""LLaVA-NeXT (LLaVA-1.6): LLaVA that sees a picture whole and in tiles, rows of tiles ended by a learned newline."""

from . import Arch
from .llava import LLAVA

LLAVA_NEXT = Arch(
    model_type="llava_next",
    vision_tower=LLAVA.vision_tower,
    vision_blocks=LLAVA.vision_blocks,
    projector=LLAVA.projector,
    language_model=LLAVA.language_model,
    language_blocks=LLAVA.language_blocks,
    lm_head=LLAVA.lm_head,
    feature_layer=LLAVA.feature_layer,
    hub_prefixes=(*LLAVA.hub_prefixes, ("model.image_newline", "image_newline")),
)
