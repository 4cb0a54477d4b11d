"""Gemma 3: a SigLIP tower, pooling and one matrix that is no linear layer (so it stays dense), a Gemma whose blocks
alternate between sliding and full attention. The tokens of a picture see each other both ways.
"""

from . import Arch
from .asking import ask_with_lists

GEMMA3 = Arch(
    model_type="gemma3",
    vision_tower="model.vision_tower",
    vision_blocks="model.vision_tower.encoder.layers",
    projector=("model.multi_modal_projector",),
    language_model="model.language_model",
    language_blocks="model.language_model.layers",
    lm_head="lm_head",
    hub_prefixes=(
        ("model.vision_tower.", "vision_tower.vision_model."),
        ("model.vision_tower.", "vision_tower."),
        ("model.multi_modal_projector.", "multi_modal_projector."),
        ("model.language_model.", "language_model.model."),
        ("lm_head.", "language_model.lm_head."),
    ),
    ask=ask_with_lists,
)
