"""deploy.toml as a frozen tree: one class per table; every default and its meaning stand here and nowhere else.

Knows no step of the pipeline. `load_config` reads a file, `render_config` writes the documented example that
`slimdeploy init` gives and that stands at the top of the repository.
"""

import difflib
import json
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import ErrorDetails

from .errors import ConfigError

ExportFormat = Literal["onnx", "vllm", "checkpoint"]
Criterion = Literal["wanda", "magnitude"]
Metric = Literal["ttft", "tpot", "e2e", "throughput", "accuracy", "accuracy_retention", "artifact_mb"]

# Share of removed weights; at 1 a layer would be nothing but zeros.
Share = Annotated[float, Field(ge=0, lt=1)]
Positive = Annotated[int, Field(gt=0)]
Rate = Annotated[float, Field(gt=0, lt=10)]


class Table(BaseModel):
    """One table of deploy.toml: frozen, strict types, unknown keys refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class ModelConfig(Table):
    """The vision-language model to compress."""

    path: str = Field(
        "demo",
        min_length=1,
        description='"demo" (ships with slimdeploy), a folder in Hugging Face layout, or a hub name such as\n'
        '"llava-hf/llava-1.5-7b-hf". Only safetensors weights are read.',
    )


class DataConfig(Table):
    """Samples: questions about pictures. The splits are drawn from one source and never overlap."""

    source: str = Field(
        "demo",
        min_length=1,
        description='"demo", a file (JSONL, LLaVA conversations, OpenAI messages), or a folder with one file per split:\n'
        "calibration.jsonl, search.jsonl, train.jsonl, validation.jsonl, test.jsonl.",
    )
    images: str = Field("", description="Folder that relative image paths start from; empty: the source's own folder.")
    calibration: Positive = Field(64, description="Samples that measure activations for the pruning criterion.")
    search: Positive = Field(64, description="Samples that score the candidates of the policy search.")
    train: Positive = Field(2000, description="Samples that restoration trains on.")
    validation: Positive = Field(256, description="Held-out samples that choose between the searched and the uniform policy.")
    test: Positive = Field(2000, description="Samples behind every reported accuracy.")


class PruneConfig(Table):
    """Which weights are removed."""

    criterion: Criterion = Field("wanda", description='"wanda" (weight times input norm) or "magnitude".')
    pattern: str = Field(
        "unstructured",
        pattern=r"^(unstructured|([1-9]\d*|\*):[1-9]\d*)$",
        description='"unstructured", "N:M" (N of every M weights kept, as "2:4"), or "*:M" (N chosen for every matrix).',
    )
    skip: tuple[str, ...] = Field((), description='Layers left dense, as globs on their names: ["*.layers.0.*"].')


class BudgetConfig(Table):
    """What the policy may cost."""

    sparsity: Share = Field(0.6, description="Share of the prunable weights to remove; 0: export and serve only.")


class SearchConfig(Table):
    """How the sparsity is shared out among the weight matrices."""

    method: Literal["evolution", "uniform"] = Field(
        "evolution", description='"evolution" (structural risk minimisation, uniform always in the race) or "uniform".'
    )
    generations: Positive = Field(20, description="Rounds of the evolution.")
    offspring: Positive = Field(16, description="Candidates per round.")
    survivors: Positive = Field(4, description="Candidates that live on to the next round.")
    level_step: float = Field(0.05, gt=0, le=0.5, description="Distance between the sparsity levels of a matrix.")
    eta: float = Field(0.02, ge=0, description="Weight of the norm term beside the proxy loss.")
    projector_steps: int = Field(
        4, ge=0, description="Gradient steps on the projector for the best candidates of a round; 0: it stays as it is."
    )
    projector_learning_rate: Rate = Field(1e-4, description="Their learning rate.")
    seed: int = Field(0, ge=0, description="Equal seeds give equal policies.")
    budget: BudgetConfig = BudgetConfig()


class RestoreConfig(Table):
    """SparseLoRA: low-rank adapters under the mask, merged afterwards; the zeros stay zeros."""

    method: Literal["sparse_lora", "none"] = Field("sparse_lora", description='"sparse_lora" or "none".')
    steps: Positive = Field(300, description="Training steps.")
    batch_size: Positive = Field(32, description="Samples per step.")
    learning_rate: Rate = Field(2e-3, description="Peak of the cosine schedule (1e-4 suits models of billions of weights).")
    rank: Positive = Field(8, description="Rank of the adapters of the language model and projector.")
    vision_rank: Positive = Field(4, description="Rank of the adapters of the vision tower.")
    alpha: float = Field(16.0, gt=0, description="Adapters are scaled by alpha / rank.")
    distillation: float = Field(0.1, ge=0, le=1, description="Share of the loss that is KL to the dense model's logits.")
    seed: int = Field(0, ge=0, description="Order of the samples and start of the adapters.")


class ExportConfig(Table):
    """The form in which the model is shipped."""

    format: ExportFormat = Field("onnx", description='"onnx" (onnxruntime), "vllm", or "checkpoint" (transformers).')
    verify_prompts: Positive = Field(32, description="Prompts whose greedy tokens must equal torch's before an export counts.")


class ServeConfig(Table):
    """The OpenAI-compatible server and its limits."""

    host: str = Field("127.0.0.1", min_length=1, description="Address to listen on; the server has no authentication.")
    port: int = Field(8000, ge=0, le=65535, description="Port to listen on; 0 takes a free one.")
    threads: int = Field(0, ge=0, description="Threads of onnxruntime; 0: one per core.")
    concurrency: Positive = Field(4, description="Requests that generate at the same time; more wait in line.")
    max_tokens: Positive = Field(512, description="Longest answer, and the default where a request names none.")
    max_images: Positive = Field(8, description="Images per request.")
    max_image_mb: float = Field(10.0, gt=0, description="Encoded size of one image.")
    max_image_megapixels: float = Field(40.0, gt=0, description="Decoded size of one image, read from its header first.")
    max_body_mb: float = Field(32.0, gt=0, description="Size of a request's body.")


class ValidateConfig(Table):
    """The load under which the targets must hold."""

    requests: Positive = Field(200, description="Requests, from the test split in order.")
    concurrency: Positive = Field(4, description="Requests in flight at the same time.")
    max_tokens: Positive = Field(16, description="Longest answer asked for.")
    warmup: int = Field(4, ge=0, description="Requests sent first and not counted.")


class Target(Table):
    """One promise that the deployment must keep: an upper bound (`max_ms`, `max`) or a lower one (`min`)."""

    metric: Metric
    percentile: float | None = Field(None, gt=0, le=100)
    max_ms: float | None = Field(None, gt=0)
    max: float | None = Field(None, gt=0)
    min: float | None = Field(None, ge=0)

    @model_validator(mode="after")
    def _one_bound_that_fits(self) -> Self:
        bound = _BOUNDS[self.metric]
        given = [name for name in ("max_ms", "max", "min") if getattr(self, name) is not None]
        if given != [bound]:
            raise ValueError(f"metric '{self.metric}' takes exactly the bound '{bound}', not {given or 'none'}")
        if (self.percentile is not None) != (bound == "max_ms"):
            verb = "needs a" if bound == "max_ms" else "takes no"
            raise ValueError(f"metric '{self.metric}' {verb} 'percentile'")
        return self

    @property
    def goal(self) -> float:
        """The bound, in the metric's unit (ms, tokens/s, share or MB)."""
        return float(getattr(self, _BOUNDS[self.metric]))

    @property
    def is_upper_bound(self) -> bool:
        return _BOUNDS[self.metric] != "min"


_BOUNDS: dict[Metric, Literal["max_ms", "max", "min"]] = {
    "ttft": "max_ms",
    "tpot": "max_ms",
    "e2e": "max_ms",
    "throughput": "min",
    "accuracy": "min",
    "accuracy_retention": "min",
    "artifact_mb": "max",
}


class Config(Table):
    """deploy.toml as a whole."""

    out: str = Field("dist/demo", min_length=1, description="The run's folder: every decision, measurement and the artifact.")
    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    prune: PruneConfig = PruneConfig()
    search: SearchConfig = SearchConfig()
    restore: RestoreConfig = RestoreConfig()
    export: ExportConfig = ExportConfig()
    serve: ServeConfig = ServeConfig()
    validate_: ValidateConfig = Field(ValidateConfig(), alias="validate")
    targets: tuple[Target, ...] = ()

    def anchored(self, folder: Path) -> "Config":
        """The same settings with relative paths made to start from `folder`; names that are no path stay."""
        source = self.data.source if self.data.source == "demo" else str(folder / self.data.source)
        images = str(folder / self.data.images) if self.data.images else ""
        local = folder / self.model.path
        model = str(local) if self.model.path != "demo" and (local.exists() or self.model.path.startswith(".")) else self.model.path
        return self.model_copy(
            update={
                "out": str(folder / self.out),
                "model": self.model.model_copy(update={"path": model}),
                "data": self.data.model_copy(update={"source": source, "images": images}),
            }
        )


def load_config(path: Path) -> Config:
    """Read deploy.toml; relative paths in it start from its own folder.

    Raises ConfigError that names the key, its value and what would be right.
    """
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path} does not exist; `slimdeploy init` writes one") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path} is not valid TOML: {error}") from None
    return parse_config(tables, name=str(path)).anchored(path.parent)


def parse_config(tables: dict[str, Any], name: str = "deploy.toml") -> Config:
    """Check the tables of a deploy.toml. `model = "NAME"` is short for `[model] path = "NAME"`."""
    if isinstance(tables.get("model"), str):
        tables = tables | {"model": {"path": tables["model"]}}
    try:
        # By way of JSON: there pydantic's strict mode takes arrays for tuples and still refuses "3" for 3.
        return Config.model_validate_json(json.dumps(tables, default=str))
    except ValidationError as error:
        raise ConfigError(f"{name}: " + "; ".join(map(_sentence, error.errors(include_url=False)))) from None


def _sentence(error: ErrorDetails) -> str:
    key = ".".join(map(str, error["loc"]))
    if error["type"] == "extra_forbidden":
        suggestion = difflib.get_close_matches(str(error["loc"][-1]), _siblings(error["loc"]), n=1, cutoff=0.5)
        hint = f"did you mean '{suggestion[0]}'?" if suggestion else f"known are {', '.join(_siblings(error['loc']))}"
        return f"{key} is not a setting; {hint}"
    if error["type"] == "missing":
        return f"{key} is missing"
    reason = error["msg"].removeprefix("Value error, ").removeprefix("Input ")
    value = json.dumps(error["input"], default=str)
    if error["type"] == "value_error":
        return f"{key}: {reason}"
    if error["type"] == "literal_error":
        suggestion = difflib.get_close_matches(str(error["input"]), _options(error), n=1, cutoff=0.5)
        reason += f"; did you mean '{suggestion[0]}'?" if suggestion else ""
    return f"{key} = {value} {reason}"


def _options(error: ErrorDetails) -> list[str]:
    return str(error["ctx"]["expected"]).replace(" or ", ", ").replace("'", "").split(", ")


def _siblings(location: tuple[int | str, ...]) -> list[str]:
    """The settings that stand beside an unknown one."""
    table: type[BaseModel] = Config
    for part in location[:-1]:
        if part == "targets":
            table = Target
        elif isinstance(part, str):
            annotation = next(f.annotation for n, f in table.model_fields.items() if (f.alias or n) == part)
            assert isinstance(annotation, type) and issubclass(annotation, BaseModel)
            table = annotation
    return [field.alias or name for name, field in table.model_fields.items()]


def render_config(config: Config | None = None) -> str:
    """The documented deploy.toml: every table, key, meaning and value. Reading it gives `config` back."""
    config = config or Config(targets=EXAMPLE_TARGETS)
    lines = ["# slimdeploy: from a vision-language model to a served, measured deployment.", f"# {_HOW_TO_RUN}", ""]
    lines += _render_table("", config)
    lines += ["# What must hold; `slimdeploy validate` exits with 1 when one is missed. Metrics and their bounds:"]
    lines += ["#   ttft, tpot, e2e   percentile and max_ms   time to first token, per further token, of the whole answer"]
    lines += ["#   throughput        min                     generated tokens per second, all requests together"]
    lines += ["#   accuracy          min                     share of right answers through the endpoint, 0 to 1"]
    lines += ["#   accuracy_retention  min                   that share over the dense model's"]
    lines += ["#   artifact_mb       max                     size of the artifact in MB (10^6 bytes)"]
    for target in config.targets:
        lines += ["[[targets]]"]
        lines += [f"{key} = {json.dumps(value)}" for key, value in target.model_dump(exclude_none=True).items()]
        lines += [""]
    return "\n".join(lines).rstrip() + "\n"


_HOW_TO_RUN = "Run it with `slimdeploy run deploy.toml`. What is left out keeps the value shown here."

EXAMPLE_TARGETS = (
    Target(metric="accuracy_retention", min=0.97),
    Target(metric="ttft", percentile=95, max_ms=250),
    Target(metric="tpot", percentile=95, max_ms=60),
    Target(metric="artifact_mb", max=16),
)


def _render_table(path: str, table: Table) -> list[str]:
    lines: list[str] = []
    subtables: list[str] = []
    for name, field in type(table).model_fields.items():
        key, value = field.alias or name, getattr(table, name)
        if isinstance(value, Table):
            subpath = f"{path}.{key}" if path else key
            subtables += [f"# {(type(value).__doc__ or '').strip()}", f"[{subpath}]", *_render_table(subpath, value)]
        elif key != "targets":
            lines += [f"# {line}" for line in (field.description or "").splitlines()]
            lines += [f"{key} = {json.dumps(value)}"]
    return [*lines, "", *subtables]
