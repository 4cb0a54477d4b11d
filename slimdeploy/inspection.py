"""What an artifact or a checkpoint is worth and what it is made of, outside a run."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from .artifact import Artifact, is_artifact, open_artifact
from .config import Config
from .data import load_samples
from .progress import Progress
from .samples import Sample, fingerprint_of_split, fingerprints, require_answers
from .scoring import Accuracy, score


def engine_answers(artifact: Artifact, samples: Sequence[Sample], config: Config, progress: Progress) -> list[str]:
    """Greedy answers of an ONNX artifact, one after the other, without a server."""
    from .serve.engine import greedy
    from .serve.runtime import LoadedModel

    model = LoadedModel(artifact, config.serve.threads)
    sampling = greedy(config.validate_.max_tokens)
    questions = progress.track(samples, "onnx answers", total=len(samples))
    return [model.ask(sample.question, sample.images, sampling) for sample in questions]


def evaluate(path: str, config: Config, progress: Progress) -> tuple[Accuracy, Accuracy | None]:
    """Accuracy on the test split, of an ONNX artifact by its engine, of other models by torch; and the dense model's.

    The latter is what an artifact's manifest says, and None where it says nothing or speaks of other samples.
    """
    samples = load_samples(config.data, ["test"])["test"]
    require_answers(samples, "accuracy")
    dense = None
    if is_artifact(Path(path)):
        artifact = open_artifact(Path(path))
        dense = _dense_accuracy(artifact, samples)
        if artifact.manifest.format == "onnx":
            return score(samples, engine_answers(artifact, samples, config, progress)), dense
        path = str(artifact.path)

    from .checkpoint import is_packed, locate_model
    from .evaluate import greedy_answers
    from .model import load_model, load_packed

    folder, limit = locate_model(path), config.validate_.max_tokens
    packed = is_packed(folder)
    if packed:
        progress.say("packed weights are multiplied on the CPU, in float32, whatever [model] says")
    model = load_packed(folder) if packed else load_model(path, config.model.dtype, config.model.device)
    return score(samples, greedy_answers(model, samples, limit, config.data.batch_size, progress)), dense


def _dense_accuracy(artifact: Artifact, samples: Sequence[Sample]) -> Accuracy | None:
    quality = artifact.manifest.quality
    asked_the_same = artifact.manifest.test_split == fingerprint_of_split(fingerprints(samples))
    return _accuracy(quality["dense"]) if asked_the_same and "dense" in quality else None


def _accuracy(values: dict[str, Any]) -> Accuracy:
    by_kind = {kind: _accuracy(of_kind) for kind, of_kind in values["by_kind"].items()}
    return Accuracy(values["value"], values["standard_error"], values["count"], by_kind)


def inspect(path: str) -> list[dict[str, Any]]:
    """One row per prunable layer: from an artifact's manifest, or counted in a checkpoint's weights, one at a time."""
    if is_artifact(Path(path)):
        return open_artifact(Path(path)).manifest.layers

    from .streaming import load_streamed

    model = load_streamed(path)
    assert model.streamed
    rows = []
    for layer in model.layers():
        ((_, weight),) = model.streamed.stored.read([f"{layer.name}.weight"])
        kept = int(weight.count_nonzero())
        found = {"pattern": "as found", "kept": kept, "sparsity": 1 - kept / layer.weights, "bytes": weight.nbytes}
        rows.append(asdict(layer) | found)
    return rows
