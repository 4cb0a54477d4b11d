"""InstructBLIP: a ViT, a Q-Former whose queries read the picture with the question in view, a Vicuna behind them.

Those with a Flan-T5, an encoder and a decoder, are not supported: they have no list of language blocks.
"""

from collections.abc import Mapping
from typing import Any

from . import Arch
from .asking import Ask, ask_processor


def _prompt(question: str, _: int) -> str:
    return question


def _ask(processor: Any, ask: Ask) -> Any:
    """The Q-Former reads the question, never the answer, from position 0 on: it is padded on the right."""
    batch = ask_processor(processor, ask)
    question = processor.qformer_tokenizer(
        list(ask.prompts), padding=True, padding_side="right", return_token_type_ids=False, return_tensors="pt"
    )
    batch["qformer_input_ids"], batch["qformer_attention_mask"] = question["input_ids"], question["attention_mask"]
    return batch


def _padding(name: str, batch: Mapping[str, Any]) -> Any:
    """The question's tokens follow the queries; layers between queries and picture see none of them."""
    without_question = ("crossattention.", "intermediate_query.", "output_query.", "language_projection")
    return None if any(part in name for part in without_question) else batch["qformer_attention_mask"].bool()


def _last_text_layer(config: Any) -> tuple[str, ...]:
    """Of the Q-Former's last layer only the queries are read."""
    last = f"qformer.encoder.layer.{config.qformer_config.num_hidden_layers - 1}"
    return (f"{last}.intermediate.", f"{last}.output.")


INSTRUCTBLIP = Arch(
    model_type="instructblip",
    vision_tower="vision_model",
    vision_blocks="vision_model.encoder.layers",
    projector=("qformer", "language_projection"),
    language_model="language_model.model",
    language_blocks="language_model.model.layers",
    lm_head="language_model.lm_head",
    hub_prefixes=(("", ""),),
    projector_padding=_padding,
    dead=_last_text_layer,
    fewest=1,
    most=1,
    prompt=_prompt,
    ask=_ask,
)
