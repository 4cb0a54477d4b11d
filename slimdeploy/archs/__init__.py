"""Families of vision-language models: where each keeps its towers, projector and blocks, how checkpoints name its
weights, and how its processor wants to be asked.

A new family is one file here and one name in `_families`. `slimdeploy.model` walks over modules with what stands here.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from ..errors import ModelError
from .asking import Ask, answer_lengths, ask_processor

Media = Literal["pictures", "sounds"]


def _nothing(_: Any) -> tuple[str, ...]:
    return ()


def _no_padding(_: str, __: Mapping[str, Any]) -> None:
    return None


@dataclass(frozen=True)
class Arch:
    """Module paths of one family, as transformers names them, and what else differs between families.

    vision_tower: the encoder of pictures, or of sounds. projector: every module between the tower and the language
    model that holds weights.
    hub_prefixes: (prefix here, prefix in a checkpoint) of every weight name. The first that fits is the published
    layout, which vLLM's loader expects; others with the same prefix here are what transformers 5 saves.
    feature_layer: where the projector reads a hidden state in the middle of the tower, the configuration's key that
    says which (an index or several; 0 is the embeddings, negative counts from the end): blocks after it are dead.
    projector_padding: by a layer's name and a batch, which of the last tokens that a layer of the projector sees are no
    padding, (samples, tokens); None where all are.
    dead: prefixes of linear layers that run and whose output nothing reads, by the configuration.
    media, fewest, most: what stands beside a question, and how many a sample must and may have.
    media_token: the configuration's key for the token that a picture's or a sound's features replace.
    first_position: of the first token that is no padding; None where the model counts itself, in several dimensions.
    causal_prompt: False where a prompt's tokens see each other both ways, so that they predict nothing.
    prompt: form of a question, where the family was trained without a chat template.
    processor: makes the class that loads the processor, where transformers' own needs packages that pictures do not.
    ask: turns prompts and media into inputs, padded on the left. answer_lengths: how many tokens each answer has there.
    """

    model_type: str
    vision_tower: str
    vision_blocks: str
    projector: tuple[str, ...]
    language_model: str
    language_blocks: str
    lm_head: str
    hub_prefixes: tuple[tuple[str, str], ...]
    feature_layer: str | None = None
    projector_padding: Callable[[str, Mapping[str, Any]], Any] = _no_padding
    dead: Callable[[Any], tuple[str, ...]] = _nothing
    media: Media = "pictures"
    fewest: int = 0
    most: int | None = None
    media_token: str = "image_token_id"
    first_position: int | None = 0
    causal_prompt: bool = True
    prompt: Callable[[str, int], str] | None = None
    processor: Callable[[], Any] | None = None
    ask: Callable[[Any, Ask], Any] = field(default=ask_processor)
    answer_lengths: Callable[[Any, Ask], list[int]] = field(default=answer_lengths)

    def hub_name(self, name: str) -> str:
        """The name that a weight has in a published checkpoint."""
        return self.checkpoint_names(name)[0]

    def checkpoint_names(self, name: str) -> tuple[str, ...]:
        """All names that a weight may have in a checkpoint, the published one first, the module's own last."""
        names = [theirs + name.removeprefix(ours) for ours, theirs in self.hub_prefixes if name.startswith(ours)]
        if not names:
            raise ModelError(f"weight '{name}' has no name on the hub for family '{self.model_type}'")
        return tuple(dict.fromkeys([*names, name]))

    def stored_name(self, name: str, stored: Collection[str]) -> str:
        """The name that a weight has among the names that a checkpoint's files hold."""
        for candidate in self.checkpoint_names(name):
            if candidate in stored:
                return candidate
        raise ModelError(f"the checkpoint has no weight '{name}', under whatever name; download or save it again")


def arch_for(config: dict[str, Any], source: str) -> Arch:
    """The family of a checkpoint, by the `model_type` in its config.json. `source` names it in errors."""
    supported = {arch.model_type: arch for arch in _families()}
    model_type = config.get("model_type")
    if model_type is None:
        raise ModelError(
            f"config.json of {source} has no model_type, which transformers writes, so it is no folder in Hugging Face "
            f"layout; give a checkpoint that transformers saved, of one of {', '.join(supported)}"
        )
    if not isinstance(model_type, str) or model_type not in supported:
        raise ModelError(
            f"{source} is of the architecture '{model_type}', which slimdeploy does not know; "
            f"supported: {', '.join(supported)}"
        )
    return supported[model_type]


def _families() -> tuple[Arch, ...]:
    from .gemma3 import GEMMA3
    from .idefics3 import IDEFICS3
    from .instructblip import INSTRUCTBLIP
    from .llava import LLAVA
    from .llava_next import LLAVA_NEXT
    from .paligemma import PALIGEMMA
    from .qwen2_5_vl import QWEN2_5_VL
    from .qwen2_audio import QWEN2_AUDIO
    from .qwen3_vl import QWEN3_VL
    from .smolvlm import SMOLVLM

    pictures = (LLAVA, LLAVA_NEXT, IDEFICS3, SMOLVLM, QWEN2_5_VL, QWEN3_VL, PALIGEMMA, GEMMA3, INSTRUCTBLIP)
    return (*pictures, QWEN2_AUDIO)
