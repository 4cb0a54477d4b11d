"""deploy.toml as a frozen tree: one class per table; every default and its meaning stand here and nowhere else.

Knows no step of the pipeline and no file; `config_file` reads and writes them.
"""

import math
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, PlainValidator, model_validator

from .errors import ConfigError

ExportFormat = Literal["onnx", "vllm", "checkpoint"]
OnnxWeights = Literal[
    "packed", "packed-int4", "packed-int8", "packed-bf16", "dense-fp32", "dense-fp16", "dense-int8", "dense-int4"
]
OtherForm = Literal["none", "dense-fp32", "dense-fp16", "dense-int8", "dense-int4"]
CheckpointWeights = Literal["dense", "packed", "packed-int4", "packed-int8", "packed-bf16"]
Criterion = Literal["wanda", "magnitude", "atv", "sparsegpt"]
SearchMethod = Literal["evolution", "uniform", "language", "owl", "ecoflap"]
Metric = Literal["ttft", "tpot", "e2e", "throughput", "accuracy", "accuracy_retention", "artifact_mb"]

# Share of removed weights; at 1 a layer would be nothing but zeros.
Share = Annotated[float, Field(ge=0, lt=1)]
Stage = Annotated[float, Field(gt=0, le=1)]
Positive = Annotated[int, Field(gt=0)]
Rate = Annotated[float, Field(gt=0, lt=10)]


def _eta(value: object) -> object:
    if value == "auto" or (isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < math.inf):
        return value
    raise ValueError(f"{value!r} is neither 'auto' nor a number from 0 on")


Eta = Annotated[float | Literal["auto"], PlainValidator(_eta)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]


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
    dtype: Literal["float32", "bfloat16", "float16"] = Field(
        "float32",
        description='What torch holds weights in: "float32", or with half the memory "bfloat16" or "float16".',
    )
    streamed: bool = Field(
        False,
        description="Leave the blocks on disk and read one at a time: searches and prunes a model that does not fit\n"
        "into memory, and writes OUT/pruned/checkpoint. Restoring and measuring need the model whole.",
    )
    device: str = Field(
        "cpu",
        pattern=r"^(cpu|cuda(:\d{1,2})?)$",
        description='Where torch computes: "cpu", "cuda" or "cuda:1". Results repeat bit for bit on "cpu" alone.',
    )


class DataConfig(Table):
    """Samples: questions about pictures. The splits are drawn from one source and never overlap."""

    source: str = Field(
        "demo",
        min_length=1,
        description='"demo", a file (JSONL, LLaVA conversations, OpenAI messages), a folder with one file per split\n'
        "(calibration.jsonl, search.jsonl, train.jsonl, validation.jsonl, test.jsonl), or the unpacked folder of\n"
        "ScienceQA or VizWiz.",
    )
    images: str = Field("", description="Folder that relative image paths start from; empty: the source's own folder.")
    calibration: Positive = Field(64, description="Samples that measure activations for the pruning criterion.")
    search: Positive = Field(64, description="Samples that score the candidates of the policy search.")
    train: Positive = Field(4000, description="Samples that restoration trains on.")
    validation: Positive = Field(256, description="Held-out samples that judge between searched and uniform policy.")
    test: Positive = Field(2000, description="Samples behind every reported accuracy.")
    batch_size: Positive = Field(64, description="Samples per forward pass where nothing is trained.")


class PruneConfig(Table):
    """Which weights are removed."""

    criterion: Criterion = Field(
        "wanda",
        description='"wanda" (weight times input norm), "atv" (the same over text and the visual tokens that change\n'
        'most), "sparsegpt" (the weights that stay make up for those that go), or "magnitude".',
    )
    pattern: str = Field(
        "unstructured",
        pattern=r"^(unstructured|([1-9]\d*|\*):[1-9]\d*)$",
        description='"unstructured", "N:M" (N of every M weights kept, as "2:4"), or "*:M" (N chosen per matrix).',
    )
    compete: Literal["row", "matrix"] = Field(
        "row",
        description='Among which weights an unstructured pattern chooses: those of a "row", or the whole "matrix".',
    )
    propagate: Literal["dense", "pruned"] = Field(
        "dense",
        description="What a block is pruned for: the inputs that the dense blocks before it give, or the pruned ones.",
    )
    include: tuple[str, ...] = Field(
        (), description='Linear layers to prune beside those of blocks and projector, as globs: ["lm_head"].'
    )
    skip: tuple[str, ...] = Field((), description='Layers left dense, as globs on their names: ["*.layers.0.*"].')

    @model_validator(mode="after")
    def _group_holds_what_is_kept(self) -> Self:
        if self.highest_sparsity < 0:
            raise ValueError(
                f"prune.pattern = '{self.pattern}' keeps more weights than a group has; write N:M with N <= M"
            )
        return self

    @property
    def is_blockwise(self) -> bool:
        """Masks cannot be told from the dense model's statistics alone."""
        return self.criterion == "sparsegpt" or (self.propagate == "pruned" and self.criterion != "magnitude")

    @property
    def highest_sparsity(self) -> float:
        """Share of weights that the pattern can remove at most."""
        if self.pattern == "unstructured":
            return 0.95
        kept, group = self.pattern.replace("*", "1").split(":")
        return 1 - int(kept) / int(group)


class BudgetConfig(Table):
    """What the policy may cost."""

    sparsity: Share = Field(0.6, description="Share of the prunable weights to remove; 0: export and serve only.")
    bytes: int = Field(
        0,
        ge=0,
        description="Instead of a sparsity (0 then): bytes that the prunable matrices may take together, packed.\n"
        "Zeros and the types of `search.values` compete for them. 0: the sparsity is the budget.",
    )

    @model_validator(mode="before")
    @classmethod
    def _bytes_stand_instead_of_the_sparsity(cls, values: Any) -> Any:
        return {"sparsity": 0.0, **values} if isinstance(values, dict) and values.get("bytes") else values

    @model_validator(mode="after")
    def _one_budget(self) -> Self:
        if self.bytes and self.sparsity:
            raise ValueError(
                f"search.budget asks for sparsity = {self.sparsity} and bytes = {self.bytes}; leave out the one or the "
                "other"
            )
        return self

    @property
    def binds(self) -> bool:
        """Whether there is anything to prune for."""
        return self.sparsity > 0 or self.bytes > 0


class SearchConfig(Table):
    """How the budget is shared out among the weight matrices."""

    method: SearchMethod = Field(
        "evolution",
        description='"evolution" (structural risk minimisation, uniform always in the race); or without a search:\n'
        '"uniform", "language" (uniform in the language model, the rest dense), "owl", "ecoflap".',
    )
    generations: Positive = Field(20, description="Rounds of the evolution.")
    offspring: Positive = Field(32, description="Candidates per round.")
    survivors: Positive = Field(4, description="Candidates that live on to the next round.")
    stages: tuple[Stage, ...] = Field(
        (0.125, 0.375, 1.0),
        min_length=1,
        description="Candidates are scored on these shares of the search samples in turn; the better half goes on,\n"
        "and the last stage decides who survives.",
    )
    level_step: float = Field(0.05, gt=0, le=0.5, description="Distance between the sparsity levels of a matrix.")
    values: tuple[Literal["int8", "int4"], ...] = Field(
        ("int8", "int4"),
        min_length=1,
        description="Types that survivors may be stored as where the budget is in bytes; the first is that of layers\n"
        "which prune.skip leaves dense.",
    )
    eta: Eta = Field(
        "auto",
        description='Weight of the norm term beside the proxy loss; "auto": 0 or more, whatever ranks the\n'
        "candidates of the first rounds best.",
    )
    projector_steps: int = Field(
        4, ge=0, description="Gradient steps on the projector for the best candidates of a round; 0: it stays as it is."
    )
    projector_policies: Positive = Field(2, description="How many of the best candidates those steps help together.")
    projector_learning_rate: Rate = Field(1e-3, description="Their learning rate.")
    seed: Seed = Field(0, description="Equal seeds give equal policies.")
    budget: BudgetConfig = BudgetConfig()

    @model_validator(mode="after")
    def _stages_grow(self) -> Self:
        if list(self.stages) != sorted(set(self.stages)) or self.stages[-1] != 1:
            raise ValueError(
                f"search.stages = {list(self.stages)} does not grow up to 1.0, which is all of the search samples"
            )
        return self

    @model_validator(mode="after")
    def _method_knows_the_budget(self) -> Self:
        if not self.budget.bytes or self.method == "evolution":
            return self
        if self.method != "uniform":
            raise ValueError(
                f"search.method = '{self.method}' is a formula for sparsities, but search.budget.bytes is set; take "
                "'evolution' or 'uniform', or set search.budget.sparsity instead"
            )
        if len(self.values) > 1:
            raise ValueError(
                f"search.method = 'uniform' judges nothing, so it cannot choose among search.values = "
                f"{list(self.values)}; name one of them"
            )
        return self


class RestoreConfig(Table):
    """SparseLoRA: low-rank adapters under the mask, merged afterwards; the zeros stay zeros."""

    method: Literal["sparse_lora", "lora", "none"] = Field(
        "sparse_lora", description='"sparse_lora"; "lora", masked only in the end, to compare with; or "none".'
    )
    steps: Positive = Field(200, description="Training steps.")
    batch_size: Positive = Field(32, description="Samples per step.")
    learning_rate: Rate = Field(8e-3, description="Peak of the cosine schedule (1e-4 suits billions of weights).")
    rank: Positive = Field(8, description="Rank of the adapters of the language model and projector.")
    vision_rank: Positive = Field(4, description="Rank of the adapters of the vision tower.")
    alpha: float = Field(16.0, gt=0, description="Adapters are scaled by alpha / rank.")
    distillation: float = Field(0.5, ge=0, le=1, description="Share of the loss that is KL to the dense logits.")
    reconstruction_steps: int = Field(
        0,
        ge=0,
        description="Steps before that on each block alone, whose output is to become the dense block's; 0: none.",
    )
    dtype: Literal["float32", "bfloat16"] = Field(
        "float32",
        description='Of the products in forward passes, where the model is float32: "float32", or "bfloat16", which\n'
        "halves the memory of activations. Adapters and their merge are float32 always.",
    )
    gradient_checkpointing: bool = Field(
        False, description="Keep only the blocks' inputs for the backward pass, and run the blocks again in it."
    )
    seed: Seed = Field(0, description="Order of the samples and start of the adapters.")


class OnnxConfig(Table):
    """The ONNX graphs."""

    weights: OnnxWeights = Field(
        "packed-int8",
        description='Without the zeros, for our kernels: "packed-int4", "packed-int8", "packed-bf16"; "packed": each\n'
        "matrix as the policy says, where search.budget.bytes is set. With them:\n"
        '"dense-fp32", "dense-fp16", and what onnxruntime has of its own: "dense-int8" (dynamic), "dense-int4".',
    )


class CheckpointConfig(Table):
    """The transformers checkpoint."""

    weights: CheckpointWeights = Field(
        "dense",
        description='"dense" (pruned weights are zeros that are stored), or without the zeros: "packed-int4",\n'
        '"packed-int8", "packed-bf16", "packed" (as in [export.onnx]). They need slimdeploy where they are loaded.',
    )


class ExportConfig(Table):
    """The form in which the model is shipped."""

    format: ExportFormat = Field("onnx", description='"onnx" (onnxruntime), "vllm", or "checkpoint" (transformers).')
    verify_prompts: Positive = Field(32, description="Prompts whose greedy tokens must equal torch's.")
    onnx: OnnxConfig = OnnxConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()

    @property
    def weights(self) -> OnnxWeights | CheckpointWeights:
        """The setting of the format."""
        match self.format:
            case "onnx":
                return self.onnx.weights
            case "checkpoint":
                return self.checkpoint.weights
            case "vllm":
                return "dense"

    @property
    def keeps_dtype(self) -> bool:
        """Whether weights are stored in the type that they are loaded in; other exports are made from float32."""
        return self.weights == "dense"


class ServeConfig(Table):
    """The OpenAI-compatible server and its limits."""

    host: str = Field("127.0.0.1", min_length=1, description="Address to listen on; the server has no authentication.")
    port: int = Field(8000, ge=0, le=65535, description="Port to listen on; 0 takes a free one.")
    threads: int = Field(0, ge=0, description="Threads of onnxruntime; 0: one per core.")
    concurrency: Positive = Field(4, description="Requests that generate at the same time; more wait in line.")
    max_tokens: Positive = Field(512, description="Longest answer, and the default where a request names none.")
    max_images: Positive = Field(8, description="Images per request.")
    max_image_mb: float = Field(10.0, gt=0, description="Encoded size of one image.")
    max_image_megapixels: float = Field(40.0, gt=0, description="Decoded size of one image.")
    max_body_mb: float = Field(32.0, gt=0, description="Size of a request's body.")


class ValidateConfig(Table):
    """The load under which the targets must hold."""

    requests: Positive = Field(2000, description="Requests: the test split in order, at most all of it.")
    concurrency: Positive = Field(4, description="Requests in flight at the same time.")
    max_tokens: Positive = Field(16, description="Longest answer asked for.")
    warmup: int = Field(4, ge=0, description="Requests sent first and not counted.")
    timeout_s: float = Field(60.0, gt=0, description="Longest wait for one answer; beyond it the request has failed.")
    compare: OtherForm = Field(
        "dense-int8",
        description="`run` also exports the model in this form of export.onnx.weights, zeros and all, and measures\n"
        'how much smaller and faster the artifact is. "none" saves the time and memory that it takes.',
    )


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

    out: str = Field("dist/demo", min_length=1, description="The run's folder: decisions, measurements, artifact.")
    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    prune: PruneConfig = PruneConfig()
    search: SearchConfig = SearchConfig()
    restore: RestoreConfig = RestoreConfig()
    export: ExportConfig = ExportConfig()
    serve: ServeConfig = ServeConfig()
    validate_: ValidateConfig = Field(ValidateConfig(), alias="validate")
    targets: tuple[Target, ...] = ()

    @model_validator(mode="after")
    def _pattern_can_meet_the_budget(self) -> Self:
        sparsity, most = self.search.budget.sparsity, self.prune.highest_sparsity
        if sparsity > most:
            raise ValueError(
                f"search.budget.sparsity = {sparsity} is more than prune.pattern = '{self.prune.pattern}' can remove, "
                f"which is {most:g}; lower the one or change the other"
            )
        return self

    @model_validator(mode="after")
    def _gradients_survive(self) -> Self:
        trains = self.search.budget.binds and self.restore.method != "none" and not self.model.streamed
        if self.model.dtype == "float16" and trains:
            raise ValueError(
                "model.dtype = 'float16' rounds small gradients to zero, so restoration cannot train; "
                "set 'bfloat16', or restore.method = 'none'"
            )
        return self

    @model_validator(mode="after")
    def _streamed_can_do_it(self) -> Self:
        if not self.model.streamed:
            return self
        if self.model.device != "cpu":
            raise ValueError(f"model.streamed computes on the CPU, not on model.device = '{self.model.device}'")
        if self.search.method == "ecoflap":
            raise ValueError(
                "search.method = 'ecoflap' runs the whole model for each of its matrices, which model.streamed makes "
                "endless; take 'owl', 'uniform' or 'evolution'"
            )
        if self.search.method == "evolution" and self.search.projector_steps:
            raise ValueError(
                f"search.projector_steps = {self.search.projector_steps} needs gradients through the whole model, "
                "which model.streamed does not hold; set search.projector_steps = 0"
            )
        return self

    @model_validator(mode="after")
    def _export_stores_what_the_budget_counts(self) -> Self:
        export, counts_bytes = self.export, self.search.budget.bytes > 0
        if counts_bytes and export.format == "vllm":
            raise ValueError(
                "export.format = 'vllm' stores all weights dense, so it cannot keep to search.budget.bytes; take "
                "'onnx' or 'checkpoint', or set search.budget.sparsity instead"
            )
        if counts_bytes and export.weights != "packed":
            raise ValueError(
                f"search.budget.bytes counts every matrix as the policy stores it, and "
                f"export.{export.format}.weights = '{export.weights}' stores it otherwise; set 'packed'"
            )
        if export.weights == "packed" and not counts_bytes:
            raise ValueError(
                f"export.{export.format}.weights = 'packed' stores every matrix as the policy says, which only "
                "search.budget.bytes makes it say; set that, or 'packed-int8'"
            )
        return self

    def anchored(self, folder: Path) -> "Config":
        """The same settings with relative paths made to start from `folder`, and `~` from home; other names stay.

        Raises ConfigError for the home of a user who is unknown.
        """
        source = self.data.source if self.data.source == "demo" else _anchored(self.data.source, folder)
        images = _anchored(self.data.images, folder) if self.data.images else ""
        model = self.model.path
        if model != "demo" and (model.startswith((".", "~")) or (folder / model).exists()):
            model = _anchored(model, folder)
        return self.model_copy(
            update={
                "out": _anchored(self.out, folder),
                "model": self.model.model_copy(update={"path": model}),
                "data": self.data.model_copy(update={"source": source, "images": images}),
            }
        )


def _anchored(path: str, folder: Path) -> str:
    try:
        return str(folder / Path(path).expanduser())
    except RuntimeError:
        raise ConfigError(f"{path} starts from the home of a user who is unknown; write the path out") from None
