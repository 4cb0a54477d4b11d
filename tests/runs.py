"""Runs of the whole path on a tiny random model: what they start from, and their settings."""

import itertools
import json
from dataclasses import replace
from pathlib import Path

from tiny import make_samples, make_tiny_llava

from slimdeploy.config import Config
from slimdeploy.config_file import parse_config
from slimdeploy.evaluate import greedy_answers
from slimdeploy.model import load_model
from slimdeploy.progress import Progress
from slimdeploy.samples import Sample, Split

MAX_TOKENS = 4
COUNTS: dict[Split, int] = {"calibration": 6, "search": 6, "train": 8, "validation": 6, "test": 10}


def make_source(folder: Path) -> Path:
    """A model and one file of samples per split; the model answers half of the test split rightly."""
    model = load_model(str(make_tiny_llava(folder / "model")))
    samples = iter(make_samples(sum(COUNTS.values())))
    (folder / "data").mkdir()
    for split, count in COUNTS.items():
        drawn = list(itertools.islice(samples, count))
        if split == "test":
            said = greedy_answers(model, drawn, MAX_TOKENS, len(drawn), Progress.silent())
            drawn = [replace(s, answers=(a,)) if i % 2 else s for i, (s, a) in enumerate(zip(drawn, said, strict=True))]
        lines = [record(sample, folder / "data") for sample in drawn]
        (folder / "data" / f"{split}.jsonl").write_text("\n".join(lines))
    return folder


def record(sample: Sample, folder: Path) -> str:
    names = []
    for number, image in enumerate(sample.images):
        assert isinstance(image, bytes)
        names.append(f"{sample.id}-{number}.png")
        (folder / names[-1]).write_bytes(image)
    return json.dumps({"id": sample.id, "images": names, "question": sample.question, "answers": sample.answers})


def configure(
    source: Path, out: Path, sparsity: float = 0.5, seed: int = 0, format_: str = "onnx", compare: str = "none"
) -> Config:
    return parse_config(
        {
            "out": str(out),
            "model": {"path": str(source / "model")},
            "data": {"source": str(source / "data"), **COUNTS},
            "search": {
                "generations": 2,
                "offspring": 3,
                "survivors": 2,
                "projector_steps": 1,
                "seed": seed,
                "budget": {"sparsity": sparsity},
            },
            "restore": {"steps": 3, "batch_size": 4},
            "export": {"verify_prompts": 4, "format": format_},
            "validate": {"max_tokens": MAX_TOKENS, "warmup": 1, "requests": 10, "compare": compare},
            "targets": [{"metric": "artifact_mb", "max": 50}, {"metric": "accuracy", "min": 0}],
        }
    )


def changed(config: Config, **tables: dict[str, object]) -> Config:
    values = config.model_dump(by_alias=True)
    return parse_config(
        {name: values[name] | tables.get(name, {}) if name in tables else values[name] for name in values}
    )
