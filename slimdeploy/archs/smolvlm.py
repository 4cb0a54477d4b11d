"""SmolVLM2: Idefics3's modules, and a processor that reads videos as well, which we leave to others."""

from dataclasses import replace
from typing import Any

from .asking import ask_with_lists
from .idefics3 import IDEFICS3

_CONTROL_TOKENS = {
    "fake_image_token": "<fake_token_around_image>",
    "image_token": "<image>",
    "end_of_utterance_token": "<end_of_utterance>",
    "global_image_token": "<global-img>",
    "video_token": "<video>",
}


def _processor() -> Any:
    """Without videos, for which transformers' own asks for torchvision and num2words."""
    from transformers import ProcessorMixin, SmolVLMProcessor

    def prepare(
        self: Any,
        image_processor: Any,
        tokenizer: Any,
        image_seq_len: int = 169,
        chat_template: str | None = None,
    ) -> None:
        for name, usual in _CONTROL_TOKENS.items():
            setattr(self, name, getattr(tokenizer, name, usual))
        self.image_token_id = tokenizer.convert_tokens_to_ids(self.image_token)
        self.image_seq_len = image_seq_len
        ProcessorMixin.__init__(self, image_processor, tokenizer, chat_template=chat_template)

    # A saved processor names its class, which others have to find in transformers.
    own = {"__init__": prepare, "apply_chat_template": ProcessorMixin.apply_chat_template}
    return type(SmolVLMProcessor.__name__, (SmolVLMProcessor,), own)


SMOLVLM = replace(IDEFICS3, model_type="smolvlm", processor=_processor, ask=ask_with_lists)
