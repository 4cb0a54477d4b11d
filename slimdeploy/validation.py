"""Measure an endpoint and hold it against the targets: of a whole run, of an artifact, or of a URL.

An artifact is served by a process of its own while it is measured, so that what is timed is what will run.
"""

import shlex
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import TypeAdapter

from .artifact import Artifact, is_artifact, open_artifact
from .comparison import Comparison, compare
from .config import Config
from .data import load_samples, shortfalls
from .doctor import installed_versions
from .errors import ValidateError
from .gain import missing_gains
from .measurements import Run as Load
from .measurements import remarks
from .progress import Progress
from .report import (
    REPORT_FILES,
    LayerSparsity,
    Loss,
    Report,
    Sizes,
    Stage,
    first_mistakes,
    now,
    this_machine,
    write_json,
)
from .report_html import write_html
from .samples import Sample, fingerprint_of_split, fingerprints, require_answers
from .scoring import Accuracy, agreement, score
from .targets import Measured, judge

if TYPE_CHECKING:
    from .pipeline import Run
    from .search.result import SearchResult

_FEW_SAMPLES = 100
_SERVING_PACKAGES = ("slimdeploy", "onnxruntime", "onnxruntime-gpu", "tokenizers", "fastapi", "uvicorn", "numpy")


def validate(target: str, config: Config, progress: Progress, output: Path | None = None) -> tuple[Report, Path]:
    """Measure `target`, an artifact, a run's folder or a URL, with the test split; write report.json and report.html.

    output: the folder they go to; by default `validation/` beside an artifact, or in the folder that deploy.toml names
    for a URL, so that a run's own report stays. Returns the report and that folder.
    Raises ValidateError when the endpoint cannot be measured.
    """
    split = load_samples(config.data, ["test"])["test"]
    samples = _asked(split, config)
    if "://" in target:
        report = _report(config, samples, _measure(target, samples, config, progress))
        folder = Path(config.out)
    elif is_artifact(Path(target)):
        artifact = open_artifact(Path(target))
        load = _serve_and_measure(artifact, samples, config, progress)
        report = _report(config, samples, load, artifact)
        if artifact.manifest.test_split != fingerprint_of_split(fingerprints(split)):
            report = _without_earlier_accuracies(config, report, artifact)
        folder = artifact.source.parent
    else:
        raise ValidateError(f"{target} is neither a URL nor an artifact; `slimdeploy export` makes an artifact")
    folder = output or folder / "validation"
    _write(report, folder)
    return report, folder


def _without_earlier_accuracies(config: Config, report: Report, artifact: Artifact) -> Report:
    """Accuracies on other samples than those asked now are no measure for these."""
    measured = Measured(report.run, report.accuracy.get("artifact"), None, artifact.bytes)
    note = "The artifact was made with another test split: its earlier accuracies are left out."
    return replace(
        report,
        accuracy={"artifact": report.accuracy.get("artifact")},
        targets=tuple(judge(config.targets, measured)),
        notes=(*report.notes, note),
    )


def validate_run(run: "Run") -> Report:
    """The report of a whole run: what was decided, lost, restored and measured."""
    config, artifact = run.config, open_artifact(run.artifact().path)
    samples = _asked(run.samples["test"], config)
    # Retention compares answers to the same questions, however few of them the load asks.
    dense = score(samples, run.answers(run.dense())[: len(samples)])
    if artifact.manifest.format == "onnx":
        load = _serve_and_measure(artifact, samples, config, run.progress)
        report = _report(config, samples, load, artifact, dense)
        report = replace(report, agreement=_agreement(run, load), comparison=_comparison(run, artifact))
    else:
        note = (
            f"A {artifact.manifest.format} export has no engine here: serve {artifact.path} and measure it with "
            "`slimdeploy validate URL`."
        )
        report = _report(config, samples, None, artifact)
        report = replace(report, notes=(*report.notes, note))
    if run.prunes:
        report = replace(report, search=_searched(run).summary(), restoration=_losses(run))
    report = replace(report, notes=(*report.notes, *run.notes(), *shortfalls(config.data, run.samples)))
    source_bytes = sum(file.stat().st_size for file in run.source.iterdir() if file.is_file())
    report = replace(report, size_bytes=Sizes(source_bytes, artifact.bytes))
    _write(report, run.folder.path)
    return report


def _asked(samples: list[Sample], config: Config) -> list[Sample]:
    require_answers(samples, "accuracy through the endpoint")
    return samples[: config.validate_.requests]


def _measure(url: str, samples: list[Sample], config: Config, progress: Progress) -> Load:
    from .serve.bench import measure

    return measure(url, samples, config.validate_, progress)


def _serve_and_measure(artifact: Artifact, samples: list[Sample], config: Config, progress: Progress) -> Load:
    from .serve.server import background_server

    # Without a cache: the warm-up asks some of the questions that count, and the targets hold for new ones.
    with background_server(artifact, config.serve.model_copy(update={"cache_mb": 0.0})) as url:
        return _measure(url, samples, config, progress)


def _report(
    config: Config,
    samples: list[Sample],
    load: Load | None,
    artifact: Artifact | None = None,
    dense: Accuracy | None = None,
) -> Report:
    """What follows from the load and from what the artifact says of itself.

    dense: the dense model's accuracy on just these samples; by default what the artifact says, on the whole split.
    """
    accuracy: dict[Stage, Accuracy | None] = {}
    if artifact:
        accuracy |= TypeAdapter(dict[Stage, Accuracy]).validate_python(artifact.manifest.quality)
    if load:
        accuracy["artifact"] = score(samples, load.answers)
    size = artifact.bytes if artifact else None
    measured = Measured(load, accuracy.get("artifact"), dense or accuracy.get("dense"), size)
    return Report(
        model=artifact.manifest.model if artifact else load.model if load else config.model.path,
        command=shlex.join(["slimdeploy", *sys.argv[1:]]),
        created=now(),
        machine=this_machine(),
        versions=installed_versions(_SERVING_PACKAGES),
        accuracy=accuracy,
        size_bytes=Sizes(None, size),
        targets=tuple(judge(config.targets, measured)),
        run=load,
        policy=_layers(artifact),
        mistakes=first_mistakes(samples, load.answers) if load else (),
        notes=(*_notes(samples, load), *_notes_on(artifact)),
    )


def _notes(samples: list[Sample], load: Load | None) -> tuple[str, ...]:
    few = f"Only {len(samples)} test samples were asked: their accuracy is a rough figure; hundreds make a firm one."
    return (*(remarks(load) if load else ()), *((few,) if len(samples) < _FEW_SAMPLES else ()))


def _notes_on(artifact: Artifact | None) -> tuple[str, ...]:
    """What must be known of an artifact to understand what was measured."""
    return missing_gains(artifact.manifest) if artifact else ()


def _layers(artifact: Artifact | None) -> tuple[LayerSparsity, ...] | None:
    if artifact is None:
        return None
    names = LayerSparsity.__dataclass_fields__
    rows = artifact.manifest.layers
    return tuple(LayerSparsity(**{name: row[name] for name in names if name in row}) for row in rows)


def _comparison(run: "Run", artifact: Artifact) -> Comparison | None:
    other = run.compared()
    if other is None:
        return None
    threads = run.config.serve.threads
    return compare(artifact, open_artifact(other.path), run.samples["test"], threads, run.progress)


def _searched(run: "Run") -> "SearchResult":
    from .search.result import SearchResult

    return SearchResult.load(run.search().path)


def _losses(run: "Run") -> tuple[Loss, ...]:
    return tuple(Loss(step, loss) for step, loss in enumerate(run.restoration()["losses"], start=1))


def _agreement(run: "Run", load: Load) -> dict[str, float]:
    """Share of equal greedy answers of torch with the exported weights, the ONNX engine, and the endpoint.

    The first pair on the whole test split, the others on what the load asked.
    """
    torch, onnx = run.answers(run.restored() if run.prunes else run.dense()), run.answers(run.engine())
    asked = len(load.requests)
    return {
        "torch_onnx": agreement(torch, onnx),
        "onnx_endpoint": agreement(onnx[:asked], load.answers),
        "torch_endpoint": agreement(torch[:asked], load.answers),
    }


def _write(report: Report, folder: Path) -> None:
    as_json, as_html = (folder / name for name in REPORT_FILES)
    write_json(report, as_json)
    write_html(report, as_html)
