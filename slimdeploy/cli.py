"""The command line. The only place that prints or chooses an exit code.

Exit codes: 0 done; 1 a target was missed, memory is short, or the doctor found a problem; 2 something a user can mend,
in one sentence; 130 interrupted.
"""

import argparse
import re
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from . import __version__
from .artifact import is_artifact
from .config import Config, ServeConfig
from .config_file import load_config, parse_config, render_config
from .errors import ArtifactError, ConfigError, SlimdeployError
from .export_arguments import DEFAULT_CONFIG, add_config_argument, add_export_arguments
from .progress import Progress
from .writing import new_file

if TYPE_CHECKING:
    from .artifact import Artifact

OF_THE_RUN = f"default: {DEFAULT_CONFIG} in the run's folder, else here"
_SHA256 = re.compile("[0-9a-fA-F]{64}")
# As wide as the longest names of layers need; a table takes no more than that.
_LAYERS_COLUMNS = 220
PIPELINE_STEPS = {
    "run": "the whole path: search, prune, restore, export, serve, validate",
    "search": "search a pruning policy, and show it",
    "prune": "search, then prune",
    "restore": "search, prune, then restore with SparseLoRA",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one subcommand; its exit code."""
    options = build_parser().parse_args(arguments)
    return _execute(options.command, options)


def export(options: argparse.Namespace) -> int:
    """`slimdeploy export` for another command line, which parsed `add_export_arguments`; its exit code."""
    return _execute(_export, options)


def _execute(command: Callable[[argparse.Namespace], int], options: argparse.Namespace) -> int:
    try:
        return command(options)
    except SlimdeployError as error:
        return _refuse(str(error))
    except ModuleNotFoundError as error:
        from .doctor import extra_with  # with numpy, which `_serve` imports while it is busy with files

        extra = extra_with(error.name or "")
        if extra is None:
            raise
        return _refuse(f"{error.name} is not installed; pip install 'slimdeploy[{extra}]'")
    except KeyboardInterrupt:
        Console(stderr=True).print("slimdeploy: interrupted; a run that is started again keeps its finished steps")
        return 130


def _refuse(sentence: str) -> int:
    Console(stderr=True).print(f"slimdeploy: {sentence}", style="red", highlight=False, markup=False, soft_wrap=True)
    return 2


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="slimdeploy", description="From a vision-language model to a measured endpoint."
    )
    parser.add_argument("--version", action="version", version=f"slimdeploy {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    init = commands.add_parser("init", help="write a documented deploy.toml")
    init.add_argument("file", type=Path, nargs="?", default=Path(DEFAULT_CONFIG))
    init.set_defaults(command=_init)

    for name, meaning in PIPELINE_STEPS.items():
        step = commands.add_parser(name, help=meaning)
        add_config_argument(step)
        step.set_defaults(command=_run if name == "run" else _step, step=name)

    exporting = commands.add_parser("export", help="write the artifact, running the steps before it where needed")
    add_export_arguments(exporting)
    exporting.set_defaults(command=_export)

    bundle = commands.add_parser("bundle", help="put an artifact into one file, and print its sha256")
    _add_artifact(bundle)
    bundle.add_argument(
        "--output", type=Path, metavar="FILE", help="default: the artifact's folder with .zip behind it"
    )
    bundle.set_defaults(command=_bundle)

    verify = commands.add_parser("verify", help="compare every file of an artifact or bundle with its manifest")
    _add_artifact(verify)
    verify.add_argument("--sha256", metavar="HEX", help="what `slimdeploy bundle` printed; for a bundle alone")
    verify.set_defaults(command=_verify)

    serve = commands.add_parser("serve", help="serve an artifact over an OpenAI-compatible endpoint")
    _add_artifact(serve)
    serve.add_argument(
        "--config", type=Path, metavar="TOML", help="deploy.toml whose [serve] counts; else the run's own"
    )
    serve.add_argument("--host", help="address to listen on")
    serve.add_argument("--port", type=int, help="port to listen on; 0 takes a free one")
    serve.add_argument(
        "--dry-run",
        action="store_true",
        help="serve nothing: tell how much memory it takes; exit code 0 if this machine has it, 1 if not",
    )
    serve.set_defaults(command=_serve)

    validate = commands.add_parser("validate", help="measure an artifact or endpoint and compare it with the targets")
    validate.add_argument("target", metavar="ARTIFACT|URL", help="an artifact, a run's folder, or an endpoint's URL")
    validate.add_argument("--targets", type=Path, metavar="TOML", help=OF_THE_RUN)
    validate.add_argument("--output", type=Path, metavar="DIR", help="of report.json and report.html")
    validate.set_defaults(command=_validate)

    evaluate = commands.add_parser("evaluate", help="accuracy on the test split, without a server")
    evaluate.add_argument(
        "path",
        metavar="ARTIFACT|MODEL|TOML",
        help="an artifact, a run's folder, a checkpoint; or a deploy.toml, for the dense, pruned and restored model",
    )
    evaluate.add_argument("--data", type=Path, metavar="TOML", help=OF_THE_RUN)
    evaluate.set_defaults(command=_evaluate)

    inspect = commands.add_parser("inspect", help="shape, sparsity and pattern of every prunable layer")
    inspect.add_argument("path", metavar="ARTIFACT|MODEL")
    inspect.set_defaults(command=_inspect)

    ask = commands.add_parser("ask", help="one answer from an artifact, without a server")
    _add_artifact(ask)
    ask.add_argument(
        "--image", type=Path, action="append", default=[], metavar="FILE", help="may be given several times"
    )
    ask.add_argument("--max-tokens", type=int, default=64, metavar="N", help="default: %(default)s")
    ask.add_argument("question")
    ask.set_defaults(command=_ask)

    doctor = commands.add_parser("doctor", help="what this machine has, and what is wrong with the installation")
    doctor.set_defaults(command=_doctor)
    return parser


def _add_artifact(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "artifact", type=Path, metavar="ARTIFACT", help="an artifact's folder or bundle, or a run's folder"
    )


def _init(options: argparse.Namespace) -> int:
    if options.file.exists():
        raise ConfigError(f"{options.file} exists already; name another file")
    with new_file(options.file) as file:
        file.write_text(render_config(), encoding="utf-8")
    _say(f"wrote {options.file}; next: slimdeploy run {options.file}")
    return 0


def _say(line: str) -> None:
    """One line as it is, however narrow the terminal."""
    Console().print(line, highlight=False, markup=False, soft_wrap=True)


def _run(options: argparse.Namespace) -> int:
    from .pipeline import run_pipeline
    from .tables import verdict

    console, config = Console(), load_config(options.config)
    with Progress(console) as progress:
        report = run_pipeline(config, progress)
    console.print(*verdict(report), sep="\n")
    if report.run:
        _say(f"serve it: slimdeploy serve {Path(config.out).resolve()}")
    return 0 if report.met else 1


def _step(options: argparse.Namespace) -> int:
    from .pipeline import opened_run
    from .tables import accuracy_table

    console = Console()
    with Progress(console) as progress, opened_run(load_config(options.config), progress) as run:
        steps = {"search": run.search, "prune": run.pruned, "restore": run.restored}
        step = steps[options.step]()
    _show_layers(run.layer_rows())
    if run.answered(step):
        console.print(accuracy_table(run.accuracy(step), of=step.path.name))
    return 0


def _export(options: argparse.Namespace) -> int:
    from .artifact import open_artifact
    from .gain import missing_gains
    from .pipeline import opened_run

    config = load_config(options.config)
    settings = config.export.model_copy(update={"format": options.to or config.export.format})
    with Progress(Console()) as progress, opened_run(config, progress) as run:
        if settings == config.export and options.output is None:
            folder = run.artifact().path
        else:
            folder = options.output or run.folder.path / settings.format
            run.export_to(folder, settings)
    _say(f"{settings.format} artifact: {folder}")
    for note in missing_gains(open_artifact(folder).manifest):
        _say(f"note: {note}")
    return 0


def _bundle(options: argparse.Namespace) -> int:
    from .artifact import bundle, open_artifact

    artifact = open_artifact(options.artifact.resolve())
    if artifact.bundle and not options.output:
        raise ConfigError(f"{artifact.bundle} is a bundle already; name another file with --output")
    file = options.output or artifact.path.with_name(f"{artifact.path.name}.zip")
    _say(f"{bundle(artifact, file)}  {file}")
    return 0


def _verify(options: argparse.Namespace) -> int:
    from .artifact import open_artifact
    from .writing import sha256_of

    path, wanted = options.artifact, options.sha256
    if wanted is not None and not path.is_file():
        raise ConfigError(f"--sha256 is that of a bundle, and {path} is none; leave it out, or name the bundle")
    if wanted is not None and not _SHA256.fullmatch(wanted):
        raise ConfigError(f"--sha256 '{wanted}' is none: it has 64 digits from 0 to f; `slimdeploy bundle` prints it")
    if wanted is not None and (found := sha256_of(path)) != wanted.lower():
        raise ArtifactError(f"{path} has the sha256 {found}, not '{wanted}'; copy it again")
    artifact = open_artifact(path)
    files = len(artifact.manifest.files)
    _say(f"{artifact.source} is intact: {files} files, {artifact.bytes / 1e6:.1f} MB, as its manifest says")
    return 0


def _serve(options: argparse.Namespace) -> int:
    from .artifact import open_artifact

    config = _serve_config(options)
    with ThreadPoolExecutor(1) as opening:
        opened = opening.submit(open_artifact, options.artifact)
        # Meanwhile: importing takes one core as long as comparing the files of a small model takes the others.
        from .serve.request_log import start_log
        from .serve.server import run_server

        artifact = opened.result()
    if options.dry_run:
        return _dry_run(artifact, config)
    start_log(config.log_format)
    run_server(artifact, config, ready=lambda url: _say(f"serving {artifact.manifest.model} at {url}"))
    return 0


def _dry_run(artifact: "Artifact", config: ServeConfig) -> int:
    from .doctor import free_memory
    from .serve.memory import all_needs, total
    from .tables import memory_table

    needs, free = all_needs(artifact, config), free_memory()
    Console().print(memory_table(needs, free))
    if free is None:
        _say("how much memory is free is not known on this system")
        return 0
    fits = total(needs) <= free
    remedy = "lower serve.concurrency, serve.cache_mb or serve.max_image_megapixels"
    _say("it fits" if fits else f"it does not fit; {remedy}")
    return 0 if fits else 1


def _serve_config(options: argparse.Namespace) -> ServeConfig:
    """[serve] of the file that is named, else of the run that made the artifact; flags win."""
    file = options.config or _config_of_the_run(options.artifact)
    serve = load_config(file).serve if file else ServeConfig()
    flags = {key: getattr(options, key) for key in ("host", "port") if getattr(options, key) is not None}
    return parse_config({"serve": serve.model_dump() | flags}, name="command line").serve


def _config_of(target: str, file: Path | None, option: str) -> Config:
    """The deploy.toml that `option` names, else that of the run which `target` is or lies in, else the one here."""
    file = file or _config_of_the_run(Path(target)) or Path(DEFAULT_CONFIG)
    if not file.is_file():
        raise ConfigError(f"{file} does not exist; name a deploy.toml with {option}; `slimdeploy init` writes one")
    return load_config(file)


def _config_of_the_run(path: Path) -> Path | None:
    """The deploy.toml of the run that `path` is, or whose artifact it is."""
    folders = (path, path.parent) if is_artifact(path) else (path,)
    return next((file for folder in folders if (file := folder / DEFAULT_CONFIG).is_file()), None)


def _validate(options: argparse.Namespace) -> int:
    from .tables import verdict
    from .validation import validate

    console = Console()
    with Progress(console) as progress:
        report, folder = validate(
            options.target, _config_of(options.target, options.targets, "--targets"), progress, options.output
        )
    console.print(*verdict(report), sep="\n")
    _say(f"report: {folder / 'report.html'}")
    return 0 if report.met else 1


def _evaluate(options: argparse.Namespace) -> int:
    from .inspection import evaluate
    from .pipeline import opened_run
    from .tables import accuracy_table

    console = Console()
    if Path(options.path).suffix == ".toml":
        with Progress(console) as progress, opened_run(load_config(Path(options.path)), progress) as run:
            found = {stage: run.accuracy(step) for stage, step in run.stages().items()}
        for stage, accuracy in found.items():
            console.print(accuracy_table(accuracy, found["dense"], stage))
        return 0
    with Progress(console) as progress:
        accuracy, dense = evaluate(options.path, _config_of(options.path, options.data, "--data"), progress)
    console.print(accuracy_table(accuracy, dense))
    return 0


def _inspect(options: argparse.Namespace) -> int:
    from .inspection import inspect

    _show_layers(inspect(options.path))
    return 0


def _show_layers(rows: Sequence[dict[str, Any]]) -> None:
    from .tables import policy_table

    # Names and figures take this much; folded into fewer columns they cannot be read.
    Console(width=max(Console().width, _LAYERS_COLUMNS)).print(policy_table(rows))


def _ask(options: argparse.Namespace) -> int:
    from .serve.engine import greedy
    from .serve.runtime import load

    sampling, model = greedy(options.max_tokens), load(options.artifact)
    start = time.perf_counter()
    answer = model.ask(options.question, options.image, sampling)
    Console().print(answer, highlight=False, markup=False)
    Console(stderr=True).print(
        f"answered in {1000 * (time.perf_counter() - start):.0f} ms", style="dim", highlight=False
    )
    return 0


def _doctor(_: argparse.Namespace) -> int:
    from .doctor import examine
    from .tables import findings_table

    findings = examine()
    Console().print(findings_table(findings))
    return 1 if any(finding.problem for finding in findings) else 0
