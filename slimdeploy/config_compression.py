"""The tables of deploy.toml about what is compressed: model, samples, pruning, search, restoration."""

from typing import Any, Literal, Self

from pydantic import Field, model_validator

from .config_table import Eta, Pattern, Positive, Rate, Seed, Share, Stage, Table

Criterion = Literal["wanda", "magnitude", "atv", "sparsegpt"]
StartFormula = Literal["owl", "ecoflap"]
Formula = Literal["uniform", "language", StartFormula]
SearchMethod = Literal["evolution", Formula]


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
        description="Leave the blocks on disk and read one at a time while the model is searched and pruned, on the\n"
        "CPU: for models that do not fit into memory. Restoring and measuring read it whole, on a larger machine\n"
        "if need be.",
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
        "sparsegpt",
        description='"sparsegpt" (weights that stay make up for those that go), "wanda" (weight times input norm),\n'
        '"atv" (the same over text and the visual tokens that change most), or "magnitude".',
    )
    pattern: Pattern = Field(
        "unstructured",
        description='"unstructured", "N:M" (N of every M weights kept, as "2:4"), or "*:M" (N chosen per matrix); of\n'
        "columns left over beyond the last M the same share is kept.",
    )
    compete: Literal["auto", "row", "matrix"] = Field(
        "auto",
        description='Among which weights an unstructured pattern chooses: those of a "row", or the whole "matrix".\n'
        '"auto" is what was published: rows for wanda and atv, the matrix for sparsegpt and magnitude.',
    )
    propagate: Literal["dense", "pruned"] = Field(
        "dense",
        description="What a block is pruned for: the inputs that the dense blocks before it give, or the pruned ones.",
    )
    include: tuple[str, ...] = Field(
        (), description='Linear layers to prune beside those of blocks and projector, as globs: ["lm_head"].'
    )
    skip: tuple[str, ...] = Field((), description='Layers left dense, as globs on their names: ["*.layers.0.*"].')

    @property
    def is_blockwise(self) -> bool:
        """Masks cannot be told from the dense model's statistics alone."""
        return self.criterion == "sparsegpt" or (self.propagate == "pruned" and self.criterion != "magnitude")

    @property
    def per_row(self) -> bool:
        """Whether the weights of an unstructured pattern compete within their row."""
        return self.compete == "row" or (self.compete == "auto" and self.criterion in ("wanda", "atv"))

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
    start: tuple[StartFormula, ...] = Field(
        ("owl", "ecoflap"),
        description="Formulas whose policies the evolution starts from, beside uniform; none for a budget in bytes,\n"
        "and not ECoFLaP's where the model is streamed or no search sample has an answer.",
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
        4,
        ge=0,
        description="Gradient steps on the projector for the best candidates of a round; 0: it stays as it is, as it\n"
        "does where model.streamed is set.",
    )
    projector_policies: Positive = Field(2, description="How many of the best candidates those steps help together.")
    projector_learning_rate: Rate = Field(1e-3, description="Their learning rate.")
    solved_gb: float = Field(
        8.0,
        ge=0,
        description="GB of the device's memory for what SparseGPT makes of every matrix at every level, which the\n"
        "search judges; where that takes more, or model.streamed is set, its masks alone are judged.",
    )
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
    learning_rate: Rate = Field(4e-3, description="Peak of the cosine schedule (1e-4 suits billions of weights).")
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
