"""Processors of families that also take videos, without them: transformers reads videos with torchvision."""

from typing import Any


def without_videos(processor: type[Any]) -> type[Any]:
    """A class that loads and saves all parts of `processor` but the one for videos.

    Its name stays, because a saved processor names its class, which others have to find in transformers.
    """

    def prepare(
        self: Any, image_processor: Any = None, tokenizer: Any = None, chat_template: str | None = None
    ) -> None:
        processor.__init__(self, image_processor, tokenizer, None, chat_template=chat_template)

    return type(processor.__name__, (processor,), {"__init__": prepare})
