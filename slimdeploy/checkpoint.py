"""Where a checkpoint lies, and whether it may be loaded: judged from its files alone, before torch reads a weight.

Knows file names and formats; no module, no tensor.
"""

import json
from collections.abc import Iterable
from math import prod
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from .archs import Arch, arch_for
from .errors import ModelError
from .packed_config import METHOD

DEMO = "demo"
WEIGHTS = "model.safetensors"
WEIGHTS_INDEX = "model.safetensors.index.json"
_SETTINGS = ("*.json", "*.txt", "*.jinja", "tokenizer.model")
# Nothing that Python would execute or unpickle is fetched.
_HUB_PATTERNS = ["*.safetensors", *_SETTINGS]
_PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
_TOKENIZERS = ("tokenizer.json", "tokenizer.model")
_PROCESSORS = ("preprocessor_config.json", "processor_config.json")


def locate_model(path: str) -> Path:
    """The folder of "demo", of a path, or of a model on the hub, which is downloaded unless it already was."""
    if path == DEMO:
        from .demo import CHECKPOINT

        return CHECKPOINT
    try:
        folder = Path(path).expanduser()
    except RuntimeError as error:
        raise ModelError(f"{path} does not exist: {error}") from None
    if folder.is_dir():
        return folder
    if folder.exists():
        raise ModelError(f"{path} is a file; the model must be a folder in Hugging Face layout")
    parts = path.split("/")
    if path.startswith((".", "/", "~")) or len(parts) != 2 or not all(parts):
        raise ModelError(
            f"{path} does not exist; name a folder in Hugging Face layout, a hub model as OWNER/NAME, or 'demo'"
        )
    return _download(path)


def model_name(path: str) -> str:
    """What users call the model: "demo", a folder's own name, or the hub's OWNER/NAME."""
    folder = Path(path).expanduser()
    return folder.resolve().name if path != DEMO and folder.is_dir() else path


def _download(name: str) -> Path:
    import httpx
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    try:
        return Path(snapshot_download(name, allow_patterns=_HUB_PATTERNS))
    except (RepositoryNotFoundError, HFValidationError):
        raise ModelError(f"{name} is neither a folder here nor a model on the hub that this account can read") from None
    except LocalEntryNotFoundError:
        raise ModelError(
            f"{name} is no folder here, and the hub cannot be reached; download the model and give its folder"
        ) from None
    except (HfHubHTTPError, httpx.HTTPError, OSError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ModelError(f"{name} cannot be downloaded from the hub: {reason}") from error


def check_checkpoint(folder: Path, *, may_be_packed: bool = False) -> Arch:
    """The checkpoint's family. Raises ModelError that names what is missing, truncated, unknown, unsafe or packed."""
    arch = arch_for(_read_json(folder / "config.json"), str(folder))
    if is_packed(folder) and not may_be_packed:
        raise ModelError(
            f"{folder} holds packed weights, which are pruned and quantised already; give the checkpoint that they "
            "were made from, or load the folder with slimdeploy.transformers_plugin to use it as it is"
        )
    for file in weight_files(folder):
        _check_weights(file)
    for kind, names in (("tokenizer", _TOKENIZERS), ("processor", _PROCESSORS)):
        if not any((folder / name).is_file() for name in names):
            raise ModelError(
                f"{folder} is incomplete: it has no {kind} ({' or '.join(names)}); download or save it again"
            )
    return arch


def is_packed(folder: Path) -> bool:
    """Whether a checkpoint holds packed weights, as its settings say."""
    quantization = _read_json(folder / "config.json").get("quantization_config")
    return isinstance(quantization, dict) and quantization.get("quant_method") == METHOD


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a checkpoint. Raises ModelError where there are none, or an index names others."""
    if (folder / WEIGHTS_INDEX).is_file():
        places = _read_json(folder / WEIGHTS_INDEX).get("weight_map")
        if not isinstance(places, dict) or not places:
            raise ModelError(f"{folder / WEIGHTS_INDEX} has no 'weight_map'; download or save the model again")
        for place in places.values():
            if not isinstance(place, str) or not place.endswith(".safetensors") or Path(place).name != place:
                raise ModelError(
                    f"{folder / WEIGHTS_INDEX} has weights in {place!r}, which is no safetensors file of its folder; "
                    "download or save the model again"
                )
        return [folder / place for place in sorted(set(places.values()))]
    if not (folder / WEIGHTS).is_file() and any(True for pattern in _PICKLED for _ in folder.glob(pattern)):
        raise ModelError(
            f"{folder} has pickled weights only, which can run code when they are loaded; "
            "save the model as safetensors (save_pretrained does) and give that folder"
        )
    return [folder / WEIGHTS]


def count_weights(folder: Path) -> int:
    """Numbers in a checkpoint's safetensors files."""
    count = 0
    for file in weight_files(folder):
        with safe_open(file, framework="np") as opened:
            count += sum(prod(opened.get_slice(key).get_shape()) for key in opened.keys())  # noqa: SIM118 - no dictionary
    return count


def settings_files(folder: Path, subfolders: Iterable[str]) -> list[Path]:
    """What a checkpoint has beside its weights, relative to it: in itself and in those of `subfolders` that it has."""
    return [
        file.relative_to(folder)
        for place in (folder, *(folder / name for name in subfolders))
        for pattern in _SETTINGS
        for file in place.glob(pattern)
        if not file.name.endswith(".index.json")  # of weights
    ]


def _check_weights(file: Path) -> None:
    if not file.is_file():
        raise ModelError(f"{file.parent} is incomplete: {file.name} is missing; download or save the model again")
    try:
        with safe_open(file, framework="np"):  # compares the header with the file's length
            pass
    except (SafetensorError, OSError) as error:
        raise ModelError(
            f"{file} is truncated or no safetensors file ({error}); download or save the model again"
        ) from None


def _read_json(file: Path) -> dict[str, Any]:
    if not file.is_file():
        raise ModelError(f"{file.parent} is incomplete: {file.name} is missing; give a folder in Hugging Face layout")
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{file} cannot be read: {error}") from None
    if not isinstance(values, dict):
        raise ModelError(f"{file} holds no JSON object")
    return values
