"""The processor of a checkpoint: tokenizer, image processor or feature extractor, chat template; loaded and saved.

What a checkpoint says of videos is carried over unread: transformers reads it with packages that pictures do not need.
"""

import json
from pathlib import Path
from typing import Any

from transformers import AutoProcessor

from .archs import Arch, Media
from .errors import ModelError, first_line

_PARTS: dict[Media, str] = {"pictures": "image_processor", "sounds": "feature_extractor"}
_VIDEO_FILE, _PICTURE_FILE = "video_preprocessor_config.json", "preprocessor_config.json"
_PROCESSOR_FILE = "processor_config.json"


def load_processor(folder: Path, arch: Arch) -> Any:
    """Raises ModelError where a part is missing or cannot be used."""
    loader = arch.processor() if arch.processor is not None else AutoProcessor
    try:
        # torchvision is no dependency of ours; without this transformers asks for it and warns.
        processor = loader.from_pretrained(folder, backend="pil", local_files_only=True, trust_remote_code=False)
    except Exception as error:
        # The files come from anywhere, and no list of what their values make transformers raise is complete.
        raise ModelError(f"{folder} has no usable tokenizer or image processor: {first_line(error)}") from error
    for part in ("tokenizer", _PARTS[arch.media]):
        if getattr(processor, part, None) is None:
            raise ModelError(f"{folder} has no usable {part.replace('_', ' ')}; download or save the model again")
    if processor.tokenizer.eos_token is None:
        raise ModelError(f"{folder} has a tokenizer without an eos_token, which ends answers; name it there")
    for tokenizer in _tokenizers(processor):
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token  # any will do: padding is masked
    if arch.prompt is None and not getattr(processor, "chat_template", None):
        raise ModelError(f"{folder} has no chat template; add a chat_template.jinja beside config.json")
    for argument in ("backend", "is_local", "local_files_only"):
        # What loading was told would be saved with the tokenizer.
        for tokenizer in _tokenizers(processor):
            tokenizer.init_kwargs.pop(argument, None)
    return processor


def save_processor(processor: Any, arch: Arch, source: Path, folder: Path) -> None:
    """Equal files, whatever was encoded before. source: the folder that the processor came from."""
    for tokenizer in _tokenizers(processor):
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if backend is not None:
            # Padding a batch leaves its length in the tokenizer, and from there it would get into tokenizer.json.
            backend.no_padding()
            backend.no_truncation()
    processor.save_pretrained(folder)
    if arch.processor is not None:
        _carry_videos_over(source, folder)


def _tokenizers(processor: Any) -> list[Any]:
    own = (getattr(processor, name, None) for name in ("tokenizer", "qformer_tokenizer"))
    return [tokenizer for tokenizer in own if tokenizer is not None]


def _carry_videos_over(source: Path, folder: Path) -> None:
    """Where older checkpoints say nothing of videos, transformers takes what they say of pictures, and so do we."""
    for name in (_VIDEO_FILE, _PROCESSOR_FILE, _PICTURE_FILE):
        if not (source / name).is_file():
            continue
        settings = json.loads((source / name).read_text(encoding="utf-8"))
        videos = settings.get("video_processor") if name == _PROCESSOR_FILE else settings
        if videos:
            (folder / _VIDEO_FILE).write_text(json.dumps(videos, indent=2, sort_keys=True) + "\n", encoding="utf-8")
            return
