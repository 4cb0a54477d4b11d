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
from ..evaluate import plain_generation
from ..kernels.operators import missing_operators
from ..model import Model, encode
from ..progress import Progress
from ..samples import Sample
from ..serve.engines.onnx_model import DEEPSTACK, FEATURES, Features, OnnxModel, Prompt, Question
from ..serve.engines.onnx_sessions import padded
from ..serve.runtime import asked
from .graph import DECODER, EMBED_TOKENS, VISION_ENCODER
from .reference import FLOAT32, Reference, standing_in
from .verify_products import compare_products

Array = NDArray[Any]

MAX_TOKENS = 16
"""Tokens compared of each answer."""
RAGGED_BATCH = 3
_PRODUCTS_ON = 16
"""Tokens whose activations the products of the decoder are compared on: all activations of a graph are held at once."""
# Four bits keep about a tenth of a matrix of normal numbers; weights that were mixed up differ by about one.
_LARGEST_STORAGE_ERROR = 0.4
_PICTURE_INPUTS = ("pixel_values", "image_sizes", "image_grid_thw", "pixel_attention_mask")


@dataclass(frozen=True)
class Answer:
    """Greedy tokens, the end token included, and how clearly each won: (best - second) / |best|."""

    tokens: list[int]
    margins: list[float]


def verify_onnx(
    model: Model, folder: Path, reference: Reference, prompts: Sequence[Sample], progress: Progress
) -> dict[str, Any]:
    """Compare the graphs in `folder` with the model they came from, on one thread count for both.

    Answers are compared alone and in ragged batches, each with torch's answer to the prompt alone.
    Raises ExportError that names the weight, the part, or the prompt and token, that differs.
    """
    weights = compare_weights(model, reference)
    exported = OnnxModel(folder, torch.get_num_threads())
    with standing_in(model, reference):
        errors = compare_parts(model, exported, prompts[:RAGGED_BATCH], reference)
        expected = [greedy_in_torch(model, prompt) for prompt in progress.track(prompts, "asking torch", len(prompts))]
    lengths = [len(question_of(exported, prompt).ids) for prompt in prompts]
    batches = [[i] for i in range(len(prompts))]
    if reference.batches:
        batches += ragged_batches(lengths)
    ties = 0
    for batch in progress.track(batches, "verifying the ONNX graphs", len(batches)):
        answers = greedy_in_onnx(exported, [prompts[i] for i in batch])
        compared = zip((prompts[i] for i in batch), (expected[i] for i in batch), answers, strict=True)
        ties += sum(count_tie(prompt, answer, tokens, reference) for prompt, answer, tokens in compared)
    verification = {
        **errors,
        "prompts": len(prompts),
        "tokens": sum(len(answer.tokens) for answer in expected),
        "batch_sizes": [1, RAGGED_BATCH] if reference.batches else [1],
        "ties": ties,
    }
    if reference.weights:
        tracked = progress.track(prompts, "asking torch with float32 weights", len(prompts))
        same = sum(greedy_in_torch(model, p).tokens == e.tokens for p, e in zip(tracked, expected, strict=True))
        verification["prompts_answered_as_in_float32"] = same
        verification["relative_error_of_weights"] = _rounded(weights)
    if reference.packed:
        verification["relative_error_of_products"] = _rounded(check_products(folder, exported, reference, prompts[0]))
        verification["kernels"] = missing_operators() is None
    return verification


def question_of(exported: OnnxModel, prompt: Sample) -> Question:
    """A sample as a device reads it."""
    return exported.read([asked(prompt.question, prompt.images)])


def check_products(folder: Path, exported: OnnxModel, reference: Reference, prompt: Sample) -> float:
    """Largest relative error of a packed matrix on one picture and on the end of one prompt.

    Raises ExportError that names the first one whose error is too large.
    """
    question = question_of(exported, _with_a_picture(prompt))
    pictures = question.pictures
    tokens = exported.prompt(question, [exported.encode(picture) for picture in pictures]).tokens.last(_PRODUCTS_ON)
    mask = np.ones(tokens.embeddings.shape[:2], np.int64)
    inputs = {VISION_ENCODER: pictures[0].inputs, DECODER: {**tokens.inputs(), "attention_mask": mask}}
    return max(compare_products(folder / f"{name}.onnx", reference.packed, given) for name, given in inputs.items())


def compare_weights(model: Model, reference: Reference) -> float:
    """Largest relative error of a matrix that is stored in another form; pruned weights are zeros there as well.

    Raises ExportError that names the first one that is another than the model's.
    """
    largest = 0.0
    for name, stored in reference.weights.items():
        weight, found = model.weight(name), stored.numpy()
        error = float(np.linalg.norm(found - weight) / max(float(np.linalg.norm(weight)), 1e-30))
        if not error <= _LARGEST_STORAGE_ERROR or found[weight == 0].any():
            raise ExportError(
                f"{name} is another weight once it is exported and read again, by a relative error of {error:.2g}; "
                f"set {reference.remedy} and report this model"
            )
        largest = max(largest, error)
    return largest


def ragged_batches(lengths: Sequence[int]) -> list[list[int]]:
    """Indices of prompts in batches of (up to) three: a short, a middling and a long one where there are such."""
    by_length = sorted(range(len(lengths)), key=lambda i: lengths[i])
    count = -(-len(lengths) // RAGGED_BATCH)
    return [by_length[first::count] for first in range(count)]


@torch.no_grad()
def compare_parts(
    model: Model, exported: OnnxModel, prompts: Sequence[Sample], reference: Reference = FLOAT32
) -> dict[str, Any]:
    """Largest absolute and relative error of each graph on prompts; the decoder is given torch's features of pictures.

    Raises ExportError for a relative error beyond the reference's, and for a prompt that a device reads otherwise.
    """
    if not any(prompt.images for prompt in prompts):
        prompts = [_with_a_picture(prompts[0]), *prompts[1:]]
    pairs: dict[str, list[tuple[Array, Array]]] = {VISION_ENCODER: [], EMBED_TOKENS: [], DECODER: []}
    for prompt in prompts:
        inputs, question = encode(model, [prompt]), question_of(exported, prompt)
        ids = inputs["input_ids"]
        if ids[0].tolist() != question.ids:
            raise ExportError(
                f"prompt {prompt.id} has other tokens on a device than in {model.name}'s own processor; "
                f"set {FLOAT32.remedy} and report this model"
            )
        features = _features_in_torch(model, inputs, question) if question.pictures else []
        for picture, expected in zip(question.pictures, features, strict=True):
            found = exported.encode(picture)
            pairs[VISION_ENCODER] += [(expected[name], found[name]) for name in expected]
        embeddings = model.pretrained.get_input_embeddings()(ids)
        pairs[EMBED_TOKENS].append((_array(embeddings), exported.sessions.embed(question.ids)))
        cache = exported.sessions.new_cache(len(question.ids))
        logits = exported.sessions.decode(exported.prompt(question, features).tokens, cache)
        pairs[DECODER].append((_array(model.module(**inputs, logits_to_keep=1).logits[:, -1]), logits))
    return _errors(pairs, reference)


def _features_in_torch(model: Model, inputs: Mapping[str, Tensor], question: Question) -> list[Features]:
    """What the model's own tower and projector make of each picture of a prompt."""
    given = {name: inputs[name] for name in _PICTURE_INPUTS if name in inputs}
    found = model.pretrained.get_image_features(**given)
    hidden = model.config.text_config.hidden_size
    ends = np.cumsum([picture.tokens for picture in question.pictures])[:-1]
    rows = _array(torch.cat([features.reshape(-1, hidden) for features in found.pooler_output]))
    features: list[Features] = [{FEATURES: part} for part in np.split(rows, ends)]
    if deepstack := getattr(found, "deepstack_features", None):
        layers = np.stack([_array(torch.cat(list(layer))) for layer in deepstack])
        features = [own | {DEEPSTACK: part} for own, part in zip(features, np.split(layers, ends, axis=1), strict=True)]
    return features


def _with_a_picture(prompt: Sample) -> Sample:
    """The prompt itself, or with noise for a picture where it has none."""
    if prompt.images:
        return prompt
    pixels = np.random.default_rng(0).integers(0, 256, (64, 48, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return replace(prompt, images=(stream.getvalue(),))


def _errors(pairs: Mapping[str, Sequence[tuple[Array, Array]]], reference: Reference) -> dict[str, Any]:
    largest, relative = {}, {}
    for part, compared in pairs.items():
        expected = np.concatenate([ours.ravel() for ours, _ in compared]).astype(np.float64)
        difference = np.concatenate([theirs.ravel() for _, theirs in compared]) - expected
        error = float(np.linalg.norm(difference) / np.linalg.norm(expected))
        if not error <= reference.max_relative_error:  # also where it is no number
            raise ExportError(
                f"{part}.onnx differs from torch by a relative error of {error:.2g}, more than "
                f"{reference.max_relative_error:g}; set {reference.remedy} and report this model"
            )
        largest[part], relative[part] = _rounded(float(np.abs(difference).max())), _rounded(error)
    return {"max_abs_error": largest, "relative_error": relative}


def _rounded(value: float) -> float:
    """Two digits, so that a manifest does not change with the last bit of a sum."""
    return float(f"{value:.1e}")


@torch.no_grad()
def greedy_in_torch(model: Model, prompt: Sample) -> Answer:
    """What the whole model answers, through its own forward and KV cache."""
    inputs = {name: tensor for name, tensor in encode(model, [prompt]).items() if name != "position_ids"}
    with plain_generation(model):
        answer = model.pretrained.generate(
            **inputs, max_new_tokens=MAX_TOKENS, return_dict_in_generate=True, output_logits=True
        )
    tokens = answer.sequences[0, inputs["input_ids"].shape[1] :].tolist()
    best = [logits[0].double().topk(2).values.tolist() for logits in answer.logits]
    return Answer(tokens, [(first - second) / max(abs(first), 1e-30) for first, second in best])


def greedy_in_onnx(exported: OnnxModel, prompts: Sequence[Sample]) -> list[list[int]]:
    """What the graphs answer to a batch of prompts, padded on the right."""
    read = [_prompt_of(exported, prompt) for prompt in prompts]
    tokens, counts = padded([prompt.tokens for prompt in read])
    cache = exported.sessions.new_cache(int(counts.max()) + MAX_TOKENS, batch=len(prompts))
    logits = exported.sessions.decode(tokens, cache, counts)
    answers: list[list[int]] = [[] for _ in prompts]
    running = set(range(len(prompts)))
    for step in range(MAX_TOKENS):
        chosen = logits.argmax(axis=-1).tolist()
        for i in sorted(running):
            answers[i].append(chosen[i])
        running -= {i for i in running if chosen[i] in exported.facts.end_tokens}
        if not running:
            break
        after = exported.sessions.one_token(chosen, [prompt.next_position + step for prompt in read])
        logits = exported.sessions.decode(after, cache)
    return answers


def _prompt_of(exported: OnnxModel, prompt: Sample) -> Prompt:
    question = question_of(exported, prompt)
    return exported.prompt(question, [exported.encode(picture) for picture in question.pictures])


def count_tie(prompt: Sample, expected: Answer, tokens: Sequence[int], reference: Reference = FLOAT32) -> int:
    """0 when the tokens are torch's; 1 when they part where torch could as well have taken another token.

    Raises ExportError when they part anywhere else.
    """
    for step, (ours, theirs) in enumerate(zip(tokens, expected.tokens, strict=False)):
        if ours != theirs and expected.margins[step] < reference.tie:
            return 1  # from here on both continue different texts
        if ours != theirs:
            raise ExportError(
                f"on prompt {prompt.id} the export answers token {ours} at step {step} where torch answers "
                f"{theirs} (by a margin of {expected.margins[step]:.2g}); set {reference.remedy} and report this model"
            )
    assert len(tokens) == len(expected.tokens), "equal tokens end at the same one"
    return 0


def _array(tensor: Tensor) -> Array:
    array: Array = tensor.detach().cpu().numpy()
    return array
