"""Every ONNX export is run at once against torch: part by part, and token by token from pictures to the end.

It is run as a device will run it, with the preprocessing that serves it; torch is asked through the model's own
processor. The greedy loop here is the plainest one that handles a batch.
"""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from ..errors import ExportError
from ..kernels.operators import missing_operators
from ..model import Model, encode
from ..progress import Progress
from ..samples import Sample
from ..serve.engines.onnx_model import DEEPSTACK, FEATURES, Features, OnnxModel, Prompt, Question
from ..serve.engines.onnx_sessions import padded
from ..serve.runtime import asked
from .graph import DECODER, EMBED_TOKENS, VISION_ENCODER
from .judging import MAX_TOKENS, count_tie, judge, require_same_ends
from .reference import FLOAT32, Reference, standing_in
from .verify_products import compare_products

Array = NDArray[Any]

RAGGED_BATCH = 3
_PRODUCTS_ON = 16
"""Tokens whose activations the products of the decoder are compared on: all activations of a graph are held at once."""
# Four bits keep about a tenth of a matrix of normal numbers; weights that were mixed up differ by about one.
_LARGEST_STORAGE_ERROR = 0.4
_PICTURE_INPUTS = ("pixel_values", "image_sizes", "image_grid_thw", "pixel_attention_mask")


def verify_onnx(
    model: Model, folder: Path, reference: Reference, prompts: Sequence[Sample], progress: Progress
) -> dict[str, Any]:
    """Compare the graphs in `folder` with the model they came from, on one thread count for both.

    Answers are given to each prompt alone and in ragged batches, and torch judges each behind its prompt alone.
    Raises ExportError that names the weight, the part, or the prompt and token, that differs.
    """
    weights = compare_weights(model, reference, progress)
    compared = with_a_picture(prompts[:RAGGED_BATCH])
    with standing_in(model, reference):
        tracked = progress.track(compared, "comparing parts", len(compared))
        parts = [parts_in_torch(model, prompt) for prompt in tracked]
    reference = replace(reference, rounding_error=rounding_errors(model, compared, parts, reference, progress))
    exported = OnnxModel(folder, torch.get_num_threads())
    errors = compare_parts(exported, compared, parts, reference)
    require_same_ends(model, exported.facts.end_tokens)
    batches = batches_of(exported, prompts, reference)
    answers = answers_in_onnx(exported, prompts, batches, progress)
    inputs = inputs_of_products(exported, compared[0])
    del exported  # a large model's sessions are gone when torch reads its blocks again
    with standing_in(model, reference):
        ties = count_ties(model, prompts, answers, reference, progress)
    verification = {
        **errors,
        "relative_error_of_rounding": {part: _rounded(error) for part, error in reference.rounding_error.items()},
        "prompts": len(prompts),
        "tokens": sum(len(given[0]) for given in answers),
        "batch_sizes": sorted({len(batch) for batch in batches}),
        "ties": ties,
    }
    if reference.weights:
        tracked = progress.track(prompts, "asking torch with float32 weights", len(prompts))
        same = sum(judge(model, p, given[0]).best == given[0] for p, given in zip(tracked, answers, strict=True))
        verification["prompts_answered_as_in_float32"] = same
        verification["relative_error_of_weights"] = _rounded(weights)
    if reference.packed:
        names = progress.track(inputs, "comparing products", len(inputs))
        errors_of = [compare_products(folder / f"{name}.onnx", reference.packed, inputs[name]) for name in names]
        verification["relative_error_of_products"] = _rounded(max(errors_of))
        verification["kernels"] = missing_operators() is None
    return verification


def batches_of(exported: OnnxModel, prompts: Sequence[Sample], reference: Reference) -> list[list[int]]:
    """Indices of prompts: each one alone, and, where a batch changes nothing, all in ragged ones."""
    alone = [[i] for i in range(len(prompts))]
    if not reference.batches or len(prompts) == 1:
        return alone
    return alone + ragged_batches([len(question_of(exported, prompt).ids) for prompt in prompts])


def answers_in_onnx(
    exported: OnnxModel, prompts: Sequence[Sample], batches: Sequence[Sequence[int]], progress: Progress
) -> list[list[list[int]]]:
    """Every answer that a prompt gets: alone, and in a ragged batch where that is another one."""
    given: list[list[list[int]]] = [[] for _ in prompts]
    for batch in progress.track(batches, "asking the ONNX graphs", len(batches)):
        for i, tokens in zip(batch, greedy_in_onnx(exported, [prompts[i] for i in batch]), strict=True):
            if tokens not in given[i]:
                given[i].append(tokens)
    return given


def count_ties(
    model: Model,
    prompts: Sequence[Sample],
    answers: Sequence[Sequence[Sequence[int]]],
    reference: Reference,
    progress: Progress,
) -> int:
    """Prompts with an answer that has a token which is not torch's, and which torch could as well have taken.

    Raises ExportError that names the first prompt and token that differs otherwise.
    """
    ties = 0
    for prompt, given in zip(progress.track(prompts, "asking torch", len(prompts)), answers, strict=True):
        judged = [(answer, judge(model, prompt, answer, stepwise=not reference.batches)) for answer in given]
        ties += max(count_tie(prompt, *each, reference) for each in judged)
    return ties


def question_of(exported: OnnxModel, prompt: Sample) -> Question:
    """A sample as a device reads it."""
    return exported.read((asked(prompt.question, prompt.images),))


def inputs_of_products(exported: OnnxModel, prompt: Sample) -> dict[str, dict[str, Array]]:
    """One picture, and the end of one prompt: activations to compare products on. By the graph, without a past."""
    question = question_of(exported, prompt)
    pictures = question.pictures
    tokens = exported.prompt(question, [exported.encode(picture) for picture in pictures]).tokens.between(
        -_PRODUCTS_ON, None
    )
    mask = np.ones(tokens.embeddings.shape[:2], np.int64)
    return {VISION_ENCODER: dict(pictures[0].inputs), DECODER: {**tokens.inputs(), "attention_mask": mask}}


def compare_weights(model: Model, reference: Reference, progress: Progress) -> float:
    """Largest relative error of a matrix that is stored in another form; pruned weights are zeros there as well.

    Raises ExportError that names the first one that is another than the model's.
    """
    largest = 0.0
    for name in progress.track(reference.weights, "comparing weights", len(reference.weights)):
        weight, found = model.weight(name), reference.weights[name].numpy()
        error = float(np.linalg.norm(found - weight) / max(float(np.linalg.norm(weight)), 1e-30))
        if not error <= _LARGEST_STORAGE_ERROR or found[weight == 0].any():
            raise ExportError(
                f"{name} is another weight once it is exported and read again, by a relative error of {error:.2g}; "
                f"set {reference.remedy} and report this model"
            )
        largest = max(largest, error)
    return largest


def ragged_batches(lengths: Sequence[int]) -> list[list[int]]:
    """Indices of prompts in batches of three, some of one or two more: short, middling and long ones in each."""
    by_length = sorted(range(len(lengths)), key=lambda i: lengths[i])
    count = max(1, len(lengths) // RAGGED_BATCH)
    return [by_length[first::count] for first in range(count)]


@dataclass(frozen=True)
class Parts:
    """What torch computes of one prompt. features: of all pictures, one after the other. logits: of the last token."""

    ids: list[int]
    features: Features
    embeddings: Array
    logits: Array


@torch.no_grad()
def parts_in_torch(model: Model, prompt: Sample) -> Parts:
    inputs = encode(model, [prompt])
    ids, features = inputs["input_ids"], {}
    given = {name: inputs[name] for name in _PICTURE_INPUTS if name in inputs}
    if given:
        found = model.pretrained.get_image_features(**given)
        hidden = model.config.text_config.hidden_size
        features[FEATURES] = _array(torch.cat([rows.reshape(-1, hidden) for rows in found.pooler_output]))
        if deepstack := getattr(found, "deepstack_features", None):
            features[DEEPSTACK] = np.stack([_array(torch.cat(list(layer))) for layer in deepstack])
    embeddings = model.pretrained.get_input_embeddings()(ids)
    logits = model.module(**inputs, logits_to_keep=1).logits[:, -1]
    return Parts(ids[0].tolist(), features, _array(embeddings), _array(logits))


def rounding_errors(
    model: Model, prompts: Sequence[Sample], parts: Sequence[Parts], reference: Reference, progress: Progress
) -> dict[str, float]:
    """What rounding activations changes in torch, ||rounded - not rounded|| / ||rounded|| by graph. parts: the rounded.

    The decoder's is that of all rounding, the vision graph's included.
    """
    if not set(reference.rounding.values()) - {"none"}:
        return {}
    with standing_in(model, replace(reference, rounding={})):
        tracked = progress.track(prompts, "what rounding changes", len(prompts))
        exact = [parts_in_torch(model, prompt) for prompt in tracked]
    features = [
        (rounded.features[name], other.features[name])
        for rounded, other in zip(parts, exact, strict=True)
        for name in rounded.features
    ]
    logits = [(rounded.logits, other.logits) for rounded, other in zip(parts, exact, strict=True)]
    return {VISION_ENCODER: relative_error(features), DECODER: relative_error(logits)}


def relative_error(pairs: Sequence[tuple[Array, Array]]) -> float:
    """||second - first|| / ||first|| of all pairs together."""
    first = np.concatenate([one.ravel() for one, _ in pairs]).astype(np.float64)
    second = np.concatenate([other.ravel() for _, other in pairs])
    return float(np.linalg.norm(second - first) / np.linalg.norm(first))


def compare_parts(
    exported: OnnxModel, prompts: Sequence[Sample], parts: Sequence[Parts], reference: Reference = FLOAT32
) -> dict[str, Any]:
    """Largest absolute and relative error of each graph on prompts; the decoder is given torch's features of pictures.

    Raises ExportError for a relative error beyond the reference's, and for a prompt that a device reads otherwise.
    """
    pairs: dict[str, list[tuple[Array, Array]]] = {VISION_ENCODER: [], EMBED_TOKENS: [], DECODER: []}
    for prompt, part in zip(prompts, parts, strict=True):
        question = question_of(exported, prompt)
        if part.ids != question.ids:
            raise ExportError(
                f"prompt {prompt.id} has other tokens on a device than in the model's own processor; "
                f"set {FLOAT32.remedy} and report this model"
            )
        found = [exported.encode(picture) for picture in question.pictures]
        for name, expected in part.features.items():
            pairs[VISION_ENCODER].append((expected, np.concatenate([own[name] for own in found], axis=-2)))
        pairs[EMBED_TOKENS].append((part.embeddings, exported.sessions.embed(question.ids)))
        cache = exported.sessions.new_cache(len(question.ids))
        tokens = exported.prompt(question, [part.features] if part.features else []).tokens
        pairs[DECODER].append((part.logits, exported.sessions.decode(tokens, cache)))
    return _errors(pairs, reference)


def with_a_picture(prompts: Sequence[Sample]) -> list[Sample]:
    """The prompts; the first one has one of noise where none has any, and is first in line where another has."""
    ordered = sorted(prompts, key=lambda prompt: not prompt.images)
    if ordered[0].images:
        return ordered
    pixels = np.random.default_rng(0).integers(0, 256, (64, 48, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return [replace(ordered[0], images=(stream.getvalue(),)), *ordered[1:]]


def _errors(pairs: Mapping[str, Sequence[tuple[Array, Array]]], reference: Reference) -> dict[str, Any]:
    largest, relative = {}, {}
    for part, compared in pairs.items():
        error = relative_error(compared)
        allowed = reference.max_relative_error(part)
        if not error <= allowed:  # also where it is no number
            raise ExportError(
                f"{part}.onnx differs from torch by a relative error of {error:.2g}, more than "
                f"{allowed:g}; set {reference.remedy} and report this model"
            )
        largest[part] = _rounded(max(float(np.abs(theirs - ours).max()) for ours, theirs in compared))
        relative[part] = _rounded(error)
    return {"max_abs_error": largest, "relative_error": relative}


def _rounded(value: float) -> float:
    """Two digits, so that a manifest does not change with the last bit of a sum."""
    return float(f"{value:.1e}")


def greedy_in_onnx(exported: OnnxModel, prompts: Sequence[Sample]) -> list[list[int]]:
    """What the graphs answer to a batch of prompts, padded on the right."""
    read = [_prompt_of(exported, prompt) for prompt in prompts]
    tokens, counts = padded([prompt.tokens for prompt in read])
    most = min(MAX_TOKENS, exported.facts.context - int(counts.max()))
    cache = exported.sessions.new_cache(int(counts.max()) + most, rows=len(prompts))
    logits = exported.sessions.decode(tokens, cache, counts)
    answers: list[list[int]] = [[] for _ in prompts]
    running = set(range(len(prompts)))
    for step in range(most):
        chosen = logits.argmax(axis=-1).tolist()
        for i in sorted(running):
            answers[i].append(chosen[i])
        running -= {i for i in running if chosen[i] in exported.facts.end_tokens}
        if not running or step == most - 1:
            break
        after = exported.sessions.one_token(chosen, [prompt.next_position + step for prompt in read])
        logits = exported.sessions.decode(after, cache)
    return answers


def _prompt_of(exported: OnnxModel, prompt: Sample) -> Prompt:
    question = question_of(exported, prompt)
    return exported.prompt(question, [exported.encode(picture) for picture in question.pictures])


def _array(tensor: Tensor) -> Array:
    array: Array = tensor.detach().cpu().numpy()
    return array
