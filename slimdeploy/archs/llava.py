"""LLaVA-1.5: a CLIP (or SigLIP) tower, a two-layer projector, a Llama-like language model."""

from . import Arch

LLAVA = Arch(
    model_type="llava",
    vision_tower="model.vision_tower",
    vision_blocks="model.vision_tower.encoder.layers",
    projector=("model.multi_modal_projector",),
    language_model="model.language_model",
    language_blocks="model.language_model.layers",
    lm_head="lm_head",
    feature_layer="vision_feature_layer",
    hub_prefixes=(
        ("model.vision_tower.", "vision_tower.vision_model."),
        ("model.vision_tower.", "vision_tower."),
        ("model.multi_modal_projector.", "multi_modal_projector."),
        ("model.language_model.", "language_model.model."),
        ("lm_head.", "language_model.lm_head."),
    ),
)
