"""A thin OpenAI chat endpoint over OpenVINO GenAI's continuous batching: its own model server is in no Python index.

Run by the Python that has openvino_genai, numpy and pillow: openvino_endpoint.py FOLDER PORT STREAMS THREADS
It reads the last message of a request, `max_tokens` and `ignore_eos`, answers greedily and streams.
"""

import base64
import io
import itertools
import json
import queue
import sys
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
import openvino
import openvino_genai
from PIL import Image

CACHE_GB = 2


@dataclass
class Request:
    """answer: tokens as they are made, then None, or what went wrong."""

    text: str
    pictures: list[openvino.Tensor]
    config: openvino_genai.GenerationConfig
    answer: queue.SimpleQueue = field(default_factory=queue.SimpleQueue)


class Pipeline:
    """One thread steps it; requests join between two steps."""

    def __init__(self, folder: str, streams: int, threads: int) -> None:
        scheduling = openvino_genai.SchedulerConfig()
        scheduling.cache_size = CACHE_GB
        scheduling.max_num_seqs = streams
        scheduling.dynamic_split_fuse = True
        scheduling.enable_prefix_caching = False
        properties = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY"}
        self._pipeline = openvino_genai.ContinuousBatchingPipeline(folder, scheduling, "CPU", properties)
        self.tokenizer = self._pipeline.get_tokenizer()
        self.waiting: queue.SimpleQueue[Request] = queue.SimpleQueue()
        self._numbers = itertools.count()
        self._running: list[tuple[Any, Request]] = []

    def run(self) -> None:
        while True:
            while not self._running or not self.waiting.empty():
                self._admit(self.waiting.get())
            self._pipeline.step()
            self._running = [(handle, request) for handle, request in self._running if self._goes_on(handle, request)]

    def _admit(self, request: Request) -> None:
        pictures = [request.pictures] if request.pictures else []
        try:
            handle = self._pipeline.add_request(next(self._numbers), request.text, *pictures, request.config)
        except RuntimeError as error:
            request.answer.put(error)
        else:
            self._running.append((handle, request))

    def _goes_on(self, handle: Any, request: Request) -> bool:
        while handle.can_read():
            for output in handle.read().values():
                request.answer.put(list(output.generated_ids))
        if handle.get_status() == openvino_genai.GenerationStatus.RUNNING:
            return True
        request.answer.put(None)
        return False


def read(body: dict) -> Request:
    content = body["messages"][-1]["content"]
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
    text = "".join(part["text"] for part in parts if part["type"] == "text")
    pictures = [picture(part["image_url"]["url"]) for part in parts if part["type"] == "image_url"]
    config = openvino_genai.GenerationConfig()
    config.max_new_tokens = body["max_tokens"]
    config.ignore_eos = body.get("ignore_eos", False)
    config.do_sample = False
    config.apply_chat_template = True
    return Request(text, pictures, config)


def picture(url: str) -> openvino.Tensor:
    encoded = base64.b64decode(url.partition(",")[2])
    return openvino.Tensor(np.array(Image.open(io.BytesIO(encoded)).convert("RGB"))[None])


class Handler(BaseHTTPRequestHandler):
    """HTTP/1.0: the end of the connection is the end of a stream."""

    pipeline: Pipeline

    def do_GET(self) -> None:
        self._head("application/json")
        self.wfile.write(json.dumps({"data": [{"id": "openvino"}]}).encode())

    def do_POST(self) -> None:
        request = read(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self.pipeline.waiting.put(request)
        self._head("text/event-stream")
        count = 0
        while (made := request.answer.get()) is not None:
            if isinstance(made, Exception):
                self._event({"error": str(made)})
                return
            count += len(made)
            self._event(chunk(self.pipeline.tokenizer.decode(made), None))
        self._event(chunk("", "length"))
        self._event({"choices": [], "usage": {"prompt_tokens": 0, "completion_tokens": count}})
        self.wfile.write(b"data: [DONE]\n\n")

    def log_message(self, *_: object) -> None:
        """Nothing for every request."""

    def _head(self, kind: str) -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.end_headers()

    def _event(self, payload: dict) -> None:
        self.wfile.write(b"data: " + json.dumps(payload).encode() + b"\n\n")
        self.wfile.flush()


def chunk(text: str, reason: str | None) -> dict:
    return {"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": reason}]}


def main(folder: str, port: str, streams: str, threads: str) -> None:
    Handler.pipeline = Pipeline(folder, int(streams), int(threads))
    threading.Thread(target=Handler.pipeline.run, daemon=True).start()
    ThreadingHTTPServer(("127.0.0.1", int(port)), Handler).serve_forever()


if __name__ == "__main__":
    main(*sys.argv[1:])
