"""A FastChat worker with a fake model. FastChat's BaseModelWorker and its app are unchanged.

The model echoes the prompt word by word, after the address of the worker.
"""

import argparse
import json
import time
from collections.abc import Iterator
from typing import Any

import uvicorn
from fastchat.conversation import get_conv_template
from fastchat.serve.base_model_worker import BaseModelWorker, app


class Tokenizer:
    def num_tokens(self, prompt: str) -> int:
        return len(prompt.split())


class EchoWorker(BaseModelWorker):
    def __init__(self, arguments: argparse.Namespace) -> None:
        super().__init__(
            arguments.controller_address,
            arguments.worker_address,
            f"echo-{arguments.port}",
            "models/echo",
            arguments.model_names.split(","),
            arguments.limit_worker_concurrency,
            multimodal=arguments.multimodal,
        )
        self.tokenizer = Tokenizer()
        self.context_len = 2048
        self.delay = arguments.delay
        self.init_heart_beat()

    def make_conv_template(self, conv_template: str | None = None, model_path: str | None = None) -> Any:
        return get_conv_template("zero_shot")  # the stock method would import torch

    def answer(self, params: dict[str, Any], words: list[str]) -> dict[str, Any]:
        prompt_tokens = len(params["prompt"].split())
        usage = {"prompt_tokens": prompt_tokens, "completion_tokens": len(words)}
        usage["total_tokens"] = sum(usage.values())
        return {"text": " ".join(words), "error_code": 0, "usage": usage, "finish_reason": "stop", "logprobs": None}

    def generate_stream_gate(self, params: dict[str, Any]) -> Iterator[bytes]:
        words = [self.worker_addr, *params["prompt"].split()]
        for i in range(len(words)):
            time.sleep(self.delay)
            yield json.dumps(self.answer(params, words[: i + 1])).encode() + b"\0"

    def generate_gate(self, params: dict[str, Any]) -> Any:
        for frame in self.generate_stream_gate(params):
            last = frame
        return json.loads(last[:-1])

    def get_embeddings(self, params: dict[str, Any]) -> dict[str, Any]:
        return {"embedding": [[float(len(text))] for text in params["input"]], "token_num": len(params["input"])}


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--worker-address", required=True)
    parser.add_argument("--controller-address", required=True)
    parser.add_argument("--model-names", default="echo")
    parser.add_argument("--limit-worker-concurrency", type=int, default=4)
    parser.add_argument("--multimodal", action="store_true")
    parser.add_argument("--delay", type=float, default=0.0)
    parsed = parser.parse_args()
    worker = EchoWorker(parsed)
    uvicorn.run(app, host=parsed.host, port=parsed.port, log_level="warning")
