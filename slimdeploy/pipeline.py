"""The data path: evaluate, collect statistics, search, prune, restore, export, validate. Nothing else.

Every step leaves its result in the run's folder and is skipped when that is there and its inputs are the same
(`run_folder`). A step reads what it needs from the steps before it, so that any of them can be the first to run
after a kill.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .artifact import MANIFEST, Manifest, open_artifact, write_manifest
from .config import Config, ExportConfig
from .config_file import render_config
from .data import load_samples, shortfalls
from .doctor import installed_versions, require_extra
from .errors import ArtifactError, ConfigError
from .policy import DENSE, Policy, describe
from .progress import Progress
from .run_folder import RunFolder, Step, fingerprint_of_folder
from .samples import SPLITS, Sample, Split, fingerprint_of_split, fingerprints, require_answers
from .scoring import Accuracy, score
from .writing import new_file, new_folder

if TYPE_CHECKING:
    from .model import DType, Model
    from .report import Report, Stage

_ANSWERS = "answers.json"
_LAYERS = "layers.json"
_RESTORATION = "restoration.json"
_EXPORTING_PACKAGES = ("torch", "transformers", "onnx", "onnxscript", "onnxruntime", "safetensors")


def run_pipeline(config: Config, progress: Progress) -> "Report":
    """From the checkpoint to a measured endpoint. Raises SlimdeployError; what is finished stays."""
    if config.export.format == "onnx":
        require_extra("edge")  # now, not after hours of search
    from .validation import validate_run

    with opened_run(config, progress) as run:
        run.dense()
        if run.prunes:
            run.search()
            run.asked_pruned()
            run.restored()
        run.artifact()
        run.compared()
        return validate_run(run)


@contextmanager
def opened_run(config: Config, progress: Progress) -> Iterator["Run"]:
    """The run of `config`, with its folder locked and its settings beside its steps."""
    run = Run(config, progress)
    with run.folder.locked():
        with new_file(run.folder.path / "deploy.toml") as file:
            file.write_text(render_config(config), encoding="utf-8")
        yield run


@dataclass(frozen=True)
class Run:
    """One deploy.toml at work. A method that returns a `Step` runs it, and those before it, unless it is finished."""

    config: Config
    progress: Progress

    @cached_property
    def folder(self) -> RunFolder:
        return RunFolder(Path(self.config.out), self.progress)

    @cached_property
    def samples(self) -> dict[Split, list[Sample]]:
        samples = load_samples(self.config.data, SPLITS)
        for sentence in shortfalls(self.config.data, samples):
            self.progress.say(sentence)
        return samples

    @cached_property
    def hashes(self) -> dict[Split, list[str]]:
        """What the samples are, answers and kinds included, for fingerprints; every picture is read once."""
        return {split: fingerprints(samples) for split, samples in self.samples.items()}

    @cached_property
    def source(self) -> Path:
        """The folder of the model as it came; one of the hub is downloaded."""
        from .checkpoint import locate_model

        return locate_model(self.config.model.path)

    @property
    def name(self) -> str:
        """What users call the model."""
        from .checkpoint import model_name

        return model_name(self.config.model.path)

    @cached_property
    def source_fingerprint(self) -> str:
        return fingerprint_of_folder(self.source)

    @property
    def prunes(self) -> bool:
        """A budget that asks for nothing means export and serve only."""
        return self.config.search.budget.binds

    def dense(self) -> Step:
        """The answers of the model as it came."""

        def produce(folder: Path) -> None:
            model = self._load(self.source)
            self._require_possible(model)
            self._save_answers(model, folder)

        return self.folder.step("dense", {**self._model_inputs(), **self._test_inputs()}, produce)

    def statistics(self) -> Step:
        """What every layer's inputs look like over the calibration samples."""

        def produce(folder: Path) -> None:
            from .prune import collect_stats

            model, samples = self._load_to_prune(), self.samples["calibration"]
            self._require_possible(model)
            collect_stats(model, samples, criterion, self.config.data.batch_size, self.progress).save(folder)

        criterion = self.config.prune.criterion
        inputs = {
            **self._model_inputs(),
            "calibration": self.hashes["calibration"],
            "criterion": criterion,
            "include": self.config.prune.include,
        }
        return self.folder.step("statistics", inputs, produce)

    def search(self) -> Step:
        """The policy, a level for every prunable matrix; and the evolved projector."""
        if not self.prunes:
            raise ConfigError("search.budget.sparsity = 0 leaves nothing to search, prune or restore; set it above 0")
        statistics = self.statistics()
        inputs = {
            "statistics": statistics,
            "prune": self.config.prune.model_dump(),
            "settings": self.config.search.model_dump(),
            "streamed": self.config.model.streamed,  # what judges a policy is not the same then
            "search": self.hashes["search"],
            "validation": self.hashes["validation"],
        }

        def produce(folder: Path) -> None:
            from .prune import Stats
            from .report_plots import search_curve, write_plot
            from .search.journal import Journal
            from .search.model_search import search_policy

            model = self._load_to_prune()
            self._require_possible(model)
            journal = Journal(self.folder.journal("search", inputs))
            stats = Stats.load(statistics.path)
            result = search_policy(model, stats, self.samples, self.config, self.progress, journal)
            result.save(folder)
            if result.history:
                write_plot(search_curve(result.summary()), folder / "history.svg")
            (folder / _LAYERS).write_text(json.dumps(describe(model.layers(), result.policy), indent=1))

        return self.folder.step("search", inputs, produce)

    def pruned(self) -> Step:
        """The masks of the policy, and weights where pruning changed those that stay; and the pruned model's answers.

        Of a model that stayed on disk all weights, and no answers.
        """
        streamed = self.config.model.streamed
        answers = {} if streamed else self._test_inputs()
        search, statistics = self.search(), self.statistics()

        def produce(folder: Path) -> None:
            from .prune import Pruning, Stats, prune, prune_streamed
            from .search.result import SearchResult

            model, found, samples = self._load_to_prune(), SearchResult.load(search.path), self.samples["calibration"]
            how = Pruning(self.config.prune, samples, self.config.data.batch_size, self.progress)
            if streamed:
                prune_streamed(model, found.policy, how, folder)
                return
            stats = Stats.load(statistics.path)
            pruned = prune(model, found.policy, stats, how, evolve=lambda: found.apply_projector(model))
            pruned.save(folder)
            self._save_answers(model, folder)

        inputs = {"search": search, "on_disk": streamed, **answers}
        return self.folder.step("pruned", inputs, produce)

    def asked_pruned(self) -> Step:
        """The pruned model's answers: where it stayed on disk when it was pruned, it is read whole for them."""
        pruned = self.pruned()
        if not self.config.model.streamed:
            return pruned

        def produce(folder: Path) -> None:
            from .prune import CHECKPOINT

            self._save_answers(self._load(pruned.path / CHECKPOINT), folder)

        return self.folder.step("pruned_answers", {"pruned": pruned, **self._test_inputs()}, produce)

    def restored(self) -> Step:
        """The restored checkpoint and its answers; its zeros are the masks'."""
        answers = self._test_inputs()
        search, pruned = self.search(), self.pruned()
        inputs = {
            "pruned": pruned,
            "restore": self.config.restore.model_dump(),
            "train": self.hashes["train"],
            **answers,
        }

        def produce(folder: Path) -> None:
            from .prune import Pruned
            from .restore import restore
            from .search.result import SearchResult

            model, found = self._load(self.source), SearchResult.load(search.path)
            found.apply_projector(model)
            if self.config.model.streamed:
                start = Pruned.load_streamed(pruned.path, found.policy, self.config.prune, model)
            else:
                start = Pruned.load(pruned.path)
            samples, journal = self.samples["train"], self.folder.journal("restored", inputs)
            settings = self.config.restore
            report = restore(model, start.masks, samples, settings, self.progress, start.weights, journal)
            (folder / _RESTORATION).write_text(json.dumps(asdict(report)))
            model.save(folder / "checkpoint")
            self._save_answers(model, folder)

        return self.folder.step("restored", inputs, produce)

    def artifact(self) -> Step:
        """What is shipped, checked against torch."""

        def produce(folder: Path) -> None:
            self._export(folder, self.config.export)
            self._withdraw_report()

        return self.folder.step("artifact", self._export_inputs(self.config.export), produce, check=open_artifact)

    def _withdraw_report(self) -> None:
        """The report speaks of the artifact that is being replaced."""
        from .report import REPORT_FILES

        reports = [file for name in REPORT_FILES if (file := self.folder.path / name).is_file()]
        if reports:
            self.progress.say("the report was about the artifact before and is withdrawn; `slimdeploy run` writes one")
        for file in reports:
            file.unlink()

    def compared(self) -> Step | None:
        """The same model as another ONNX export, to measure the artifact against; None where nobody asks for it."""
        export, weights = self.config.export, self.config.validate_.compare
        if export.format != "onnx" or weights in ("none", export.onnx.weights):
            return None
        other = export.model_copy(update={"onnx": export.onnx.model_copy(update={"weights": weights})})

        def produce(folder: Path) -> None:
            self._export(folder, other)

        return self.folder.step("compared", self._export_inputs(other), produce, check=open_artifact)

    def export_to(self, path: Path, export: ExportConfig) -> None:
        """Another artifact of the same model, in a folder that is new, empty, or an artifact already."""
        path = path.resolve()
        if path.exists() and not (path / MANIFEST).is_file() and (path.is_file() or any(path.iterdir())):
            raise ArtifactError(f"{path} exists and is no artifact; name a new folder")
        with new_folder(path) as folder:
            self._export(folder, export)

    def stages(self) -> dict["Stage", Step]:
        """The finished steps that have an accuracy."""
        if not self.prunes:
            return {"dense": self.dense()}
        return {"dense": self.dense(), "pruned": self.asked_pruned(), "restored": self.restored()}

    def notes(self) -> list[str]:
        """What the steps noted for the report, each once."""
        steps = [self.statistics(), self.search(), self.pruned(), self.restored()] if self.prunes else [self.dense()]
        return list(dict.fromkeys(note for step in steps for note in step.notes))

    def engine(self) -> Step:
        """The answers of the artifact through its engine, in this process: the export without the server."""
        artifact = self.artifact()

        def produce(folder: Path) -> None:
            from .inspection import engine_answers

            answers = engine_answers(open_artifact(artifact.path), self.samples["test"], self.config, self.progress)
            (folder / _ANSWERS).write_text(json.dumps(answers))

        return self.folder.step("engine", {"artifact": artifact, **self._test_inputs()}, produce)

    def answered(self, step: Step) -> bool:
        """Whether a step asked the model the test split."""
        return (step.path / _ANSWERS).is_file()

    def answers(self, step: Step) -> list[str]:
        """What a step answered to the test split."""
        answers: list[str] = json.loads((step.path / _ANSWERS).read_text())
        return answers

    def accuracy(self, step: Step) -> Accuracy:
        return score(self.samples["test"], self.answers(step))

    def layer_rows(self) -> list[dict[str, Any]]:
        """The policy, one row per prunable layer as `policy.describe` gives them."""
        rows: list[dict[str, Any]] = json.loads((self.search().path / _LAYERS).read_text())
        return rows

    def restoration(self) -> dict[str, Any]:
        """What restoration recorded."""
        record: dict[str, Any] = json.loads((self.restored().path / _RESTORATION).read_text())
        return record

    def _export_inputs(self, settings: ExportConfig) -> dict[str, Any]:
        return {
            "model": self.restored() if self.prunes else self.dense(),
            "name": self.name,
            "export": settings.model_dump(),
            "include": self.config.prune.include,
            "calibration": self.hashes["calibration"],
        }

    def _export(self, folder: Path, settings: ExportConfig) -> None:
        from .exporters import ExportJob, export, stored_bytes, write_card

        quality: dict[str, Any] = {stage: asdict(self.accuracy(step)) for stage, step in self.stages().items()}
        # Exports are traced and compared on the CPU, where they will run.
        source = self.restored().path / "checkpoint" if self.prunes else self.source
        model = self._load_to_export(source, settings)
        layers = model.layers()
        rows = self.layer_rows() if self.prunes else describe(layers, Policy({x.name: DENSE for x in layers}))
        prompts = self.samples["calibration"][: settings.verify_prompts]
        patterns, values = ({row["name"]: row[key] for row in rows} for key in ("pattern", "values"))
        job = ExportJob(settings, prompts, patterns, values)
        verification = export(model, folder, job, self.progress)
        stored = stored_bytes(model, folder)
        manifest = Manifest(
            format=settings.format,
            model=model.name,
            family=model.arch.model_type,
            sparsity=1 - sum(row["kept"] for row in rows) / sum(layer.weights for layer in layers),
            layers=[row | {"bytes": stored[row["name"]]} for row in rows],
            quality=quality,
            verification=verification,
            versions=installed_versions(("slimdeploy", *_EXPORTING_PACKAGES)),
            test_split=fingerprint_of_split(self.hashes["test"]),
        )
        write_card(folder, manifest)
        write_manifest(folder, manifest)

    def _load_to_prune(self) -> "Model":
        """The model as it came, on disk where the settings say so."""
        from .streaming import load_streamed

        settings = self.config.model
        if not settings.streamed:
            return self._load(self.source)
        if settings.device != "cpu":
            self.progress.note(f"Searched and pruned on the CPU, not on {settings.device}: model.streamed reads there.")
        return load_streamed(str(self.source), settings.dtype, settings.path, self.config.prune.include)

    def _load_to_export(self, folder: Path, settings: ExportConfig) -> "Model":
        """Whole, or on disk where the settings say so and the format is written a matrix at a time."""
        from .streaming import load_streamed

        if self.config.model.streamed and settings.format == "onnx":
            return load_streamed(str(folder), "float32", self.config.model.path, self.config.prune.include)
        return self._load(folder, "cpu", self.config.model.dtype if settings.keeps_dtype else "float32")

    def _load(self, folder: Path, device: str | None = None, dtype: "DType | None" = None) -> "Model":
        from .model import load_model

        settings = self.config.model
        dtype, device = dtype or settings.dtype, device or settings.device
        return load_model(str(folder), dtype, device, settings.path, self.config.prune.include)

    def _require_possible(self, model: "Model") -> None:
        """What the settings ask of this model can be done: told before hours of work, not after them."""
        from .exporters import check

        check(model, self.config.export)
        if self.prunes:
            from .model import refuse_control_tokens
            from .search import search_space
            from .search.model_search import parts_of

            refuse_control_tokens(model, self.samples["train"])
            search_space(model.layers(), self.config)
            if self.config.search.method == "evolution":
                parts_of(self.samples)

    def _model_inputs(self) -> dict[str, Any]:
        return {"model": self.source_fingerprint, "dtype": self.config.model.dtype}

    def _test_inputs(self) -> dict[str, Any]:
        require_answers(self.samples["test"], "accuracy")
        return {"test": self.hashes["test"], "max_tokens": self.config.validate_.max_tokens}

    def _save_answers(self, model: "Model", folder: Path) -> None:
        from .evaluate import greedy_answers

        data, limit = self.config.data, self.config.validate_.max_tokens
        answers = greedy_answers(model, self.samples["test"], limit, data.batch_size, self.progress)
        (folder / _ANSWERS).write_text(json.dumps(answers))
