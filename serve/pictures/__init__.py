"""What a device without torch does to pictures: from the image processor's own JSON to a vision graph's inputs.

Numpy and pillow only. A picture's arrays, and the text that stands for it, equal those of transformers' PIL processors.
A family that tiles pictures in a way of its own is one file here, and one case below.
"""

from pathlib import Path
from typing import assert_never

from ..model_files import Family
from ..text import Text
from .picture import Grid, Picture, Pictures
from .settings import read_settings

__all__ = ["Grid", "Picture", "Pictures", "load_pictures"]


def load_pictures(folder: Path, family: Family, text: Text) -> Pictures:
    """Raises ArtifactError for settings that this server does not know, and for files that contradict each other."""
    said = read_settings(folder, text)
    match family:
        case "llava":
            from .llava import load_llava

            return load_llava(said)
        case "llava_next":
            from .any_resolution import load_llava_next

            return load_llava_next(said)
        case "idefics3" | "smolvlm":
            from .tiles import load_idefics3

            return load_idefics3(said)
        case "qwen2_5_vl" | "qwen3_vl":
            from .patches import load_qwen

            return load_qwen(said)
        case "paligemma":
            from .whole import load_paligemma

            return load_paligemma(said)
        case "gemma3":
            from .pan_and_scan import load_gemma3

            return load_gemma3(said)
        case _:
            assert_never(family)
