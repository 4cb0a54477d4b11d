"""The tables of deploy.toml about what is shipped: export, server, measurement, targets."""

from typing import Literal, Self

from pydantic import Field, model_validator

from .config_table import ImageHost, Origin, Positive, Table

ExportFormat = Literal["onnx", "vllm", "checkpoint"]
OnnxWeights = Literal[
    "packed", "packed-int4", "packed-int8", "packed-bf16", "dense-fp32", "dense-fp16", "dense-int8", "dense-int4"
]
VisionWeights = OnnxWeights | Literal["same"]
HeadWeights = Literal["auto", "int8", "int4"]
EmbeddingWeights = Literal["auto", "float16", "int8", "int4"]
OtherForm = Literal["none", "dense-fp32", "dense-fp16", "dense-int8", "dense-int4"]
ProviderSetting = Literal["auto", "cpu", "cuda"]
CheckpointWeights = Literal["dense", "packed", "packed-int4", "packed-int8", "packed-bf16"]
Metric = Literal["ttft", "tpot", "e2e", "throughput", "accuracy", "accuracy_retention", "artifact_mb"]


class OnnxConfig(Table):
    """The ONNX graphs."""

    weights: OnnxWeights = Field(
        "packed-int8",
        description='Without the zeros, for our kernels: "packed-int4", "packed-int8", "packed-bf16"; "packed": each\n'
        "matrix as the policy says, where search.budget.bytes is set. With them:\n"
        '"dense-fp32", "dense-fp16", and what onnxruntime has of its own: "dense-int8" (dynamic), "dense-int4".',
    )
    vision: VisionWeights = Field(
        "same", description='Of the vision tower and the projector: "same" as `weights`, or another of its forms.'
    )
    head: HeadWeights = Field(
        "auto",
        description='Of the layer that gives the logits: "int8", "int4"; "auto": as `weights`, but never four bits.',
    )
    embeddings: EmbeddingWeights = Field(
        "auto",
        description='Of the token table: "float16", "int8", "int4"; "auto": as `weights`, but never four bits.',
    )

    @property
    def vision_weights(self) -> OnnxWeights:
        """The form of the vision tower's matrices and the projector's."""
        return self.weights if self.vision == "same" else self.vision


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
    verify_prompts: Positive = Field(
        32, description="Of the calibration samples, so many (or all) whose greedy tokens must equal torch's."
    )
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


class ServeOnnxConfig(Table):
    """What runs the graphs of an ONNX artifact."""

    provider: ProviderSetting = Field(
        "auto",
        description='Execution provider: "cpu", "cuda" (with slimdeploy[edge-gpu]), or "auto": CUDA where it works.',
    )


class ServeConfig(Table):
    """The OpenAI-compatible server and its limits."""

    host: str = Field("127.0.0.1", min_length=1, description="Address to listen on.")
    port: int = Field(8000, ge=0, le=65535, description="Port to listen on; 0 takes a free one.")
    api_keys_file: str = Field(
        "",
        description="Lines NAME:KEY. Who asks must send one of the keys (Authorization: Bearer KEY). Others may stand\n"
        "in the environment, SLIMDEPLOY_API_KEYS=NAME:KEY,NAME:KEY. Without any everybody is answered.",
    )
    cors_origins: tuple[Origin, ...] = Field(
        (),
        description='Web sites whose pages may ask this server: ["https://example.org"], or ["*"] for all. Others are\n'
        "kept out by browsers.",
    )
    log_format: Literal["text", "json"] = Field(
        "text", description='A line for every request, with figures and without content: "text" or "json".'
    )
    threads: int = Field(0, ge=0, description="Threads of onnxruntime; 0: one per core.")
    concurrency: Positive = Field(4, description="Answers that are made at the same time; more wait in line.")
    max_waiting: int = Field(
        64, ge=0, description="Requests in line beside those; further ones are told to come again."
    )
    max_wait_s: float = Field(120.0, gt=0, description="Longest wait in line; then a request is told to come again.")
    drain_s: float = Field(
        30.0, ge=0, description="Time that running requests have when the server is stopped; new ones are refused."
    )
    cache_mb: float = Field(
        256.0,
        ge=0,
        description="Memory for pictures and conversations that come again: a picture is encoded once, and of a\n"
        "conversation that goes on only what is new is read. 0 keeps nothing between requests.",
    )
    max_prompt_tokens: int = Field(
        0, ge=0, description="Longest prompt, pictures included; 0: as long as the model takes."
    )
    max_total_tokens: int = Field(
        0,
        ge=0,
        description="Prompt and answer together; 0: as many as the model takes. Each answer that is made at the same\n"
        "time has a KV cache for so many.",
    )
    tokens_per_minute: int = Field(
        0, ge=0, description="Of each API key, prompts and answers together; 0: as many as it asks for."
    )
    max_tokens: Positive = Field(512, description="Longest answer, and the default where a request names none.")
    max_choices: Positive = Field(4, description="Answers to one request (its field `n`).")
    max_images: Positive = Field(8, description="Images per request.")
    max_image_mb: float = Field(10.0, gt=0, description="Encoded size of one image.")
    max_image_megapixels: float = Field(40.0, gt=0, description="Decoded size of one image, and of all in a request.")
    image_hosts: tuple[ImageHost, ...] = Field(
        (),
        description="Hosts that pictures are fetched from whose http(s) URL a request holds; without any, pictures\n"
        'come as data: URLs alone. "example.org" is its ports 80 and 443, "example.org:8443" that one;\n'
        '"*.example.org" is all below it.',
    )
    image_timeout_s: float = Field(
        10.0, gt=0, description="Longest that fetching one picture may take, redirects included."
    )
    max_body_mb: float = Field(
        32.0, gt=0, description="Size of a request's body, and of all images that are fetched for it."
    )
    grammar_timeout_s: float = Field(
        5.0, gt=0, description="Longest time that compiling what an answer must be (response_format) may take."
    )
    onnx: ServeOnnxConfig = ServeOnnxConfig()


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
