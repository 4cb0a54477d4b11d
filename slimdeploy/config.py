"""deploy.toml as a frozen tree: one class per table; every default and its meaning stand there and nowhere else.

What holds between tables stands here, and every table can be imported from here. Knows no step of the pipeline and no
file; `config_file` reads and writes them.
"""

from pathlib import Path
from typing import Self

from pydantic import Field, model_validator

from .config_compression import (
    BudgetConfig,
    Criterion,
    DataConfig,
    Formula,
    ModelConfig,
    PruneConfig,
    RestoreConfig,
    SearchConfig,
    SearchMethod,
    StartFormula,
)
from .config_shipping import (
    CheckpointConfig,
    CheckpointWeights,
    ExportConfig,
    ExportFormat,
    Metric,
    OnnxConfig,
    OnnxWeights,
    OtherForm,
    ProviderSetting,
    ServeConfig,
    ServeOnnxConfig,
    Target,
    ValidateConfig,
)
from .config_table import Table
from .errors import ConfigError

__all__ = [
    "BudgetConfig",
    "CheckpointConfig",
    "CheckpointWeights",
    "Config",
    "Criterion",
    "DataConfig",
    "ExportConfig",
    "ExportFormat",
    "Formula",
    "Metric",
    "ModelConfig",
    "OnnxConfig",
    "OnnxWeights",
    "OtherForm",
    "ProviderSetting",
    "PruneConfig",
    "RestoreConfig",
    "SearchConfig",
    "SearchMethod",
    "ServeConfig",
    "ServeOnnxConfig",
    "StartFormula",
    "Table",
    "Target",
    "ValidateConfig",
]


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
        trains = self.search.budget.binds and self.restore.method != "none"
        if self.model.dtype == "float16" and trains:
            raise ValueError(
                "model.dtype = 'float16' rounds small gradients to zero, so restoration cannot train; "
                "set 'bfloat16', or restore.method = 'none'"
            )
        return self

    @model_validator(mode="after")
    def _streamed_can_do_it(self) -> Self:
        if self.model.streamed and self.search.method == "ecoflap":
            raise ValueError(
                "search.method = 'ecoflap' runs the whole model for each of its matrices, which model.streamed makes "
                "endless; take 'owl', 'uniform' or 'evolution'"
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
        if counts_bytes and export.format == "onnx" and export.onnx.vision != "same":
            raise ValueError(
                f"search.budget.bytes counts every matrix as the policy stores it, and export.onnx.vision = "
                f"'{export.onnx.vision}' stores those of the vision tower otherwise; set 'same'"
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
        keys = _anchored(self.serve.api_keys_file, folder) if self.serve.api_keys_file else ""
        return self.model_copy(
            update={
                "serve": self.serve.model_copy(update={"api_keys_file": keys}),
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
