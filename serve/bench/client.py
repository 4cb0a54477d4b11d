"""A load client for OpenAI-compatible endpoints: a closed loop of streamed chat completions.

`concurrency` requests are in flight at any time; each stream's moments are noted as its bytes arrive. Nothing here
waits without a limit, and whatever a server does wrong is counted by kind.
"""

import asyncio
import base64
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import httpx

from slimdeploy.config import ValidateConfig
from slimdeploy.errors import ValidateError
from slimdeploy.measurements import RequestRecord, Run
from slimdeploy.progress import Bar, Progress
from slimdeploy.samples import ImageSource, Sample

from .stream import CompletionReader, StreamError

_CONNECT_SECONDS = 10.0
# After [DONE] the server has this long to end the response, or its connection is not used again.
_CLOSING_SECONDS = 1.0
# A server that lets so many requests in a row time out is not asked any further.
_TIMEOUTS_IN_A_ROW = 8
_HEADERS = {"Content-Type": "application/json", "Accept": "text/event-stream", "Accept-Encoding": "identity"}
_SIGNATURES = {b"\x89PNG": "image/png", b"\xff\xd8": "image/jpeg", b"RIFF": "image/webp", b"GIF8": "image/gif"}
_NO_FIELDS: Mapping[str, Any] = MappingProxyType({})


def measure(
    url: str,
    samples: Sequence[Sample],
    config: ValidateConfig,
    progress: Progress,
    fields: Mapping[str, Any] = _NO_FIELDS,
) -> Run:
    """Ask the endpoint at `url` the first `config.requests` samples, in order, or all where there are fewer.

    url: with or without a closing /v1. The warm-up asks the last samples and is not counted. fields: of every request,
    beside those that the load decides; `{"ignore_eos": True}` makes answers of a length.
    Raises ValidateError when no server answers there, or when it names no model.
    """
    assert samples, "an endpoint is measured with samples"
    return asyncio.run(_measure(url, samples[: config.requests], config, progress, fields))


async def _measure(
    url: str, samples: Sequence[Sample], config: ValidateConfig, progress: Progress, fields: Mapping[str, Any]
) -> Run:
    base = url.rstrip("/").removesuffix("/v1") + "/v1"
    pool = httpx.Limits(max_connections=config.concurrency, max_keepalive_connections=config.concurrency)
    # Proxies of the environment are left out: their latency is not the endpoint's.
    async with httpx.AsyncClient(limits=pool, timeout=None, headers=_HEADERS, trust_env=False) as client:
        model = await _served_model(client, base)
        load = _Load(client, f"{base}/chat/completions", {"model": model, **fields}, config)
        if config.warmup:
            warmup = [samples[-1 - index % len(samples)] for index in range(config.warmup)]
            await load.run(warmup, progress.bar("warm-up", len(warmup)))
        start = time.perf_counter()
        records = await load.run(samples, progress.bar("requests", len(samples)))
        duration = time.perf_counter() - start
    return Run(base, model, config.concurrency, config.max_tokens, config.warmup, duration, tuple(records))


async def _served_model(client: httpx.AsyncClient, base: str) -> str:
    """The first model that the endpoint names, which is what a server of one model serves."""
    try:
        response = await client.get(f"{base}/models", timeout=_CONNECT_SECONDS)
    except (httpx.InvalidURL, httpx.UnsupportedProtocol):
        raise ValidateError(f"'{base}' is not a web address; give one such as http://127.0.0.1:8000") from None
    except httpx.HTTPError as error:
        reason = str(error) or f"no answer in {_CONNECT_SECONDS:.0f} s"
        raise ValidateError(f"no server answers at {base} ({reason}); start it with `slimdeploy serve`") from None
    try:
        if response.status_code == httpx.codes.OK:
            return str(response.json()["data"][0]["id"])
    except (ValueError, TypeError, KeyError, IndexError):
        pass  # said below, as for every other answer that names no model
    raise ValidateError(
        f"{base}/models names no model (HTTP {response.status_code}); is this an OpenAI-compatible server?"
    )


class _Load:
    """Requests in flight against one endpoint."""

    def __init__(self, client: httpx.AsyncClient, url: str, fields: Mapping[str, Any], config: ValidateConfig) -> None:
        self._client = client
        self._url = url
        self._fields = fields
        self._config = config
        self._timeouts = 0

    async def run(self, samples: Sequence[Sample], bar: Bar) -> list[RequestRecord]:
        """One record per sample, in the samples' order; times count from now."""
        origin = time.perf_counter()
        records: dict[int, RequestRecord] = {}
        waiting = iter(enumerate(samples))
        workers = (
            self._work(waiting, records, origin, bar) for _ in range(min(self._config.concurrency, len(samples)))
        )
        await asyncio.gather(*workers)
        return [records[index] for index in range(len(samples))]

    async def _work(
        self, waiting: Iterator[tuple[int, Sample]], records: dict[int, RequestRecord], origin: float, bar: Bar
    ) -> None:
        for index, sample in waiting:
            if self._timeouts < _TIMEOUTS_IN_A_ROW:
                record = await self._ask(sample, origin)
                self._timeouts = self._timeouts + 1 if record.error == "timeout" else 0
            else:
                detail = f"{_TIMEOUTS_IN_A_ROW} requests in a row had timed out"
                record = RequestRecord(sample.id, time.perf_counter() - origin, error="not sent", detail=detail)
            records[index] = record
            bar.advance()

    async def _ask(self, sample: Sample, origin: float) -> RequestRecord:
        request = self._client.build_request(
            "POST", self._url, content=request_body(sample, self._fields, self._config)
        )
        reader = CompletionReader()
        error = detail = ""
        start = time.perf_counter() - origin
        try:
            async with asyncio.timeout(self._config.timeout_s) as limit:
                await self._read(request, reader, origin, limit)
        except TimeoutError:
            if not reader.done:
                error, detail = "timeout", f"no complete answer in {self._config.timeout_s:g} s"
        except StreamError as failure:
            error, detail = failure.kind, failure.detail
        except httpx.HTTPError as failure:
            kind = "connection" if reader.last_token is None else "closed in mid-stream"
            error, detail = ("", "") if reader.done else (kind, str(failure) or type(failure).__name__)
        return RequestRecord(
            sample_id=sample.id,
            start=start,
            first_token=reader.first_token,
            last_token=reader.last_token,
            tokens_in=reader.tokens_in,
            tokens_out=reader.tokens_out,
            token_source=reader.token_source,
            answer=None if error else reader.answer,
            error=error,
            detail=detail,
        )

    async def _read(
        self, request: httpx.Request, reader: CompletionReader, origin: float, limit: asyncio.Timeout
    ) -> None:
        response = await self._client.send(request, stream=True)
        try:
            if response.status_code != httpx.codes.OK:
                start_of_body = await anext(response.aiter_raw(), b"")
                raise StreamError(f"HTTP {response.status_code}", start_of_body[:200].decode(errors="replace"))
            kind = response.headers.get("content-type", "")
            if not kind.startswith("text/event-stream"):
                raise StreamError("malformed stream", f"the answer is '{kind}', not 'text/event-stream'")
            async for data in response.aiter_raw():
                reader.feed(data, time.perf_counter() - origin)
                if reader.done:
                    limit.reschedule(asyncio.get_running_loop().time() + _CLOSING_SECONDS)
            reader.end()
        finally:
            await response.aclose()


def request_body(sample: Sample, fields: Mapping[str, Any], config: ValidateConfig) -> bytes:
    """The chat completion request: greedy, streamed, pictures first and then the question, as in training.

    fields: the model and whatever else the load leaves open.
    """
    every = {
        **fields,
        "max_tokens": config.max_tokens,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    parts = [_image_part(image) for image in sample.images]
    parts.append(json.dumps({"type": "text", "text": sample.question}).encode())
    # Pictures are put in as bytes: json would look at each of their letters.
    content = b",".join(parts)
    return json.dumps(every)[:-1].encode() + b', "messages": [{"role": "user", "content": [' + content + b"]}]}"


def _image_part(image: ImageSource) -> bytes:
    encoded = image if isinstance(image, bytes) else image.read_bytes()
    kind = next((kind for start, kind in _SIGNATURES.items() if encoded.startswith(start)), "application/octet-stream")
    url = b"data:" + kind.encode() + b";base64," + base64.b64encode(encoded)
    return b'{"type": "image_url", "image_url": {"url": "' + url + b'"}}'
