"""The model card (README.md) of an artifact: where it comes from, what was removed, how good it is, how to load it.

It says what the manifest says and nothing beyond, so that a card can be trusted like a measurement.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast, get_args

from ..archs import Media, arch_for
from ..artifact import Manifest
from ..config import ExportFormat
from ..policy import Tower

CARD = "README.md"

_TOWERS: dict[Tower, str] = {"vision": "vision tower", "projector": "projector", "language": "language model"}

_LOADING: dict[ExportFormat, str] = {
    "onnx": """\
Three ONNX graphs in the layout of onnx-community, weights as `{weights}`. With `slimdeploy[edge]` (no torch needed):

```
slimdeploy serve FOLDER
slimdeploy ask FOLDER --image picture.png "What is in the picture?"
```

`decoder_model_merged.onnx` gives the logits of the last position only, which is all that generation needs.""",
    "checkpoint": """\
A checkpoint in Hugging Face layout:

```python
from transformers import AutoModelForMultimodalLM, AutoProcessor

model = AutoModelForMultimodalLM.from_pretrained(FOLDER)
processor = AutoProcessor.from_pretrained(FOLDER)
```""",
    "vllm": """\
A checkpoint under the weight names that vLLM's loader expects; no plugin and no flag is needed:

```
vllm serve FOLDER
```""",
}

_LOADING_PACKED = """\
A checkpoint in Hugging Face layout whose weights are packed; slimdeploy teaches transformers to load it. Without the
first line transformers warns of an unknown quantization type and makes the packed weights up.

```python
import slimdeploy.transformers_plugin
from transformers import AutoModelForMultimodalLM, AutoProcessor

model = AutoModelForMultimodalLM.from_pretrained(FOLDER)
processor = AutoProcessor.from_pretrained(FOLDER)
```"""

_PACKED_NODES = """\
Packed weights are inputs of the operators `slimdeploy::SparseLinear` and `slimdeploy::DenseLinear`, whose kernels come
with slimdeploy: `options.register_custom_ops_library(str(slimdeploy.kernels.library.library_file()))`. Any onnxruntime
from 1.24 on runs the files without them too, with the same answers: it then unpacks all weights to float32 when it
loads them, which takes about 33 bytes of memory for each weight of a file."""

_TASKS: dict[Media, str] = {"pictures": "image-text-to-text", "sounds": "audio-text-to-text"}

_CARD = """\
---
library_name: {library}
pipeline_tag: {task}
tags: [slimdeploy, {family}]
---

# {model}, {what}

Made from `{model}` (family {family}) with slimdeploy {version}. The source model's license and limits hold for it too.

## What was removed

{removed}

## Quality

{quality}

## How to load it

{loading}

## How it was checked

{checks}

`manifest.json` holds the level of every matrix, the versions of the packages that made this, and the size and sha256 of
each file.
"""


def write_card(folder: Path, manifest: Manifest) -> None:
    """Write README.md beside the exported files; before the manifest, which lists it."""
    text = _CARD.format(
        library="onnx" if manifest.format == "onnx" else "transformers",
        model=manifest.model,
        family=manifest.family,
        task=_TASKS[arch_for({"model_type": manifest.family}, manifest.model).media],
        version=manifest.versions.get("slimdeploy", "(unknown version)"),
        what=f"{manifest.sparsity:.1%} pruned" if manifest.sparsity else "not pruned",
        removed=_removed(manifest),
        quality=_quality(manifest.quality),
        loading=_loading(manifest),
        checks=_checks(manifest.verification),
    )
    (folder / CARD).write_text(text, encoding="utf-8")


def _loading(manifest: Manifest) -> str:
    if manifest.format == "checkpoint" and manifest.is_packed:
        return _LOADING_PACKED
    text = _LOADING[cast(ExportFormat, manifest.format)].replace("{weights}", weights_of(manifest))
    return f"{text}\n\n{_PACKED_NODES}" if manifest.format == "onnx" and manifest.is_packed else text


def weights_of(manifest: Manifest) -> str:
    return str(manifest.verification.get("weights", "dense-fp32"))


def _removed(manifest: Manifest) -> str:
    if not manifest.sparsity:
        return "Nothing: all weights are those of the source model."
    rows = []
    for tower in get_args(Tower):
        layers = [layer for layer in manifest.layers if layer["tower"] == tower]
        if layers:
            weights = sum(layer["rows"] * layer["columns"] for layer in layers)
            kept = sum(layer["kept"] for layer in layers)
            patterns = ", ".join(sorted({layer["pattern"] for layer in layers}))
            row = [_TOWERS[tower], str(len(layers)), f"{weights:,}", f"{1 - kept / weights:.1%}", patterns]
            rows.append([*row, ", ".join(sorted({layer.get("values", "") for layer in layers}))])
    # Where the policy does not choose types, all matrices have the export's.
    columns = 6 if any(row[-1] for row in rows) else 5
    head = ["Part", "Matrices", "Weights", "Removed", "Patterns", "Stored as"]
    table = _table(head[:columns], [row[:columns] for row in rows])
    stored = "are not stored" if manifest.is_packed else "are stored as zeros"
    return f"{table}\n\nRemoved weights {stored}. Embeddings and the head are not pruned."


def _quality(quality: Mapping[str, Any]) -> str:
    if not quality:
        return "Not measured."
    rows = [
        [stage, f"{accuracy['value']:.1%}", f"{accuracy['standard_error']:.1%}", f"{accuracy['count']:,}"]
        for stage, accuracy in quality.items()
    ]
    table = _table(["Stage", "Right answers", "Standard error", "Questions"], rows)
    return f"Greedy answers to the test split, by stage of the pipeline.\n\n{table}"


def _checks(verification: Mapping[str, Any]) -> str:
    """What the export compared with torch, in words; see `verify_onnx`, `verify_checkpoint` and `verify_packed`."""
    if "relative_error" in verification:
        errors = ", ".join(f"{part} {error:g}" for part, error in verification["relative_error"].items())
        sizes = " and ".join(map(str, verification["batch_sizes"]))
        text = (
            f"In onnxruntime against torch: relative errors {errors}; greedy tokens equal on {verification['prompts']} "
            f"prompts ({verification['tokens']:,} tokens) in batches of {sizes}, {verification['ties']} ties aside."
        )
        return text + _stored(verification)
    if "weights_equal" in verification:
        return (
            f"Loaded again by transformers: {verification['weights_equal']} weights and the logits on "
            f"{verification['prompts_with_equal_logits']} prompts are equal bit for bit."
        )
    if "tensors_equal" in verification:
        unchanged = verification["prompts_answered_as_in_float32"]
        by = "the kernels" if verification["kernels"] else "plain torch, without the kernels"
        return (
            f"Loaded again by transformers: {verification['tensors_equal']} tensors are equal bit for bit. Against "
            "torch with the same weights unpacked and the same rounding of activations: products with packed weights, "
            f"by {by}, are within a relative error of {verification['relative_error_of_products']:g}, greedy tokens "
            f"equal on {verification['prompts']} prompts ({verification['tokens']:,} tokens), {verification['ties']} "
            f"ties aside. Packing ('{verification['weights']}') left {unchanged} of the answers as they were."
        )
    return "Not checked."


def _stored(verification: Mapping[str, Any]) -> str:
    """What was compared where weights are not stored as they were."""
    text = ""
    if "prompts_answered_as_in_float32" in verification:
        same = verification["prompts_answered_as_in_float32"]
        text += (
            f" torch had the weights as they are stored ('{verification['weights']}') and rounded activations as they "
            f"are rounded here; with its own weights it gave the same answer to {same} of the prompts."
        )
    if "relative_error_of_products" in verification:
        by = "the kernels" if verification["kernels"] else "stock onnxruntime, without the kernels"
        text += (
            f" Products with packed weights, by {by}, are within a relative error of "
            f"{verification['relative_error_of_products']:g} of float64."
        )
    return text


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
