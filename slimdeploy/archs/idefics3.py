"""Idefics3 and the first SmolVLM: a SigLIP tower over tiles of the picture, a pixel shuffle with one linear layer, a
Llama. Checkpoints hold the names of the modules.
"""

from . import Arch

IDEFICS3 = Arch(
    model_type="idefics3",
    vision_tower="model.vision_model",
    vision_blocks="model.vision_model.encoder.layers",
    projector=("model.connector",),
    language_model="model.text_model",
    language_blocks="model.text_model.layers",
    lm_head="lm_head",
    hub_prefixes=(("", ""),),
)
