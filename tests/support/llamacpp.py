"""Real llama.cpp servers with a tiny model, which the tests write themselves."""

import contextlib
import importlib.util
import json
import re
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.llamacpp_server import CONTEXT, NAME
from tests.system.processes import Process

__all__ = ["CONTEXT", "NAME", "LlamaServer", "llama_server", "tiny_model", "write_model"]

_SCRIPT = Path(__file__).with_name("llamacpp_server.py")
_WIDTH, _LAYERS, _HEADS = 64, 2, 4
_BYTE_TOKENS = 256


def write_model(path: Path) -> None:
    """Write a Llama model with random weights and a token for each byte. It has 600 KB and generates noise."""
    import gguf
    import numpy as np

    random = np.random.default_rng(0)

    def weights(*shape: int) -> Any:
        return (random.standard_normal(shape) * 0.02).astype(np.float32)

    control, byte, unknown = (gguf.TokenType.CONTROL, gguf.TokenType.BYTE, gguf.TokenType.UNKNOWN)
    tokens = [b"<unk>", b"<s>", b"</s>", *(b"<0x%02X>" % number for number in range(_BYTE_TOKENS))]
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(_WIDTH)
    writer.add_block_count(_LAYERS)
    writer.add_feed_forward_length(2 * _WIDTH)
    writer.add_head_count(_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(_WIDTH // _HEADS)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_scores([0.0] * len(tokens))
    writer.add_token_types([unknown, control, control, *[byte] * _BYTE_TOKENS])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_tensor("token_embd.weight", weights(len(tokens), _WIDTH))
    writer.add_tensor("output_norm.weight", np.ones(_WIDTH, np.float32))
    writer.add_tensor("output.weight", weights(len(tokens), _WIDTH))
    for layer in range(_LAYERS):
        for name in ("attn_norm", "ffn_norm"):
            writer.add_tensor(f"blk.{layer}.{name}.weight", np.ones(_WIDTH, np.float32))
        for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
            writer.add_tensor(f"blk.{layer}.{name}.weight", weights(_WIDTH, _WIDTH))
        for name in ("ffn_gate", "ffn_up"):
            writer.add_tensor(f"blk.{layer}.{name}.weight", weights(2 * _WIDTH, _WIDTH))
        writer.add_tensor(f"blk.{layer}.ffn_down.weight", weights(_WIDTH, 2 * _WIDTH))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a model for llama.cpp. Skips the test if the package with the real server is not installed."""
    for package in ("xllamacpp", "gguf"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"NOT TESTED: a real llama.cpp server. There is no wheel of {package} for this platform.")
    path = tmp_path_factory.mktemp("llamacpp") / "tiny.gguf"
    write_model(path)
    return path


class LlamaServer(Process):
    """A llama.cpp server in a process of its own. The options are those of xllamacpp.CommonParams."""

    def __init__(self, log: Path, model: Path, slots: int, **options: object) -> None:
        flags = [f"{name}={value!r}" for name, value in options.items()]
        super().__init__(log, str(_SCRIPT), str(model), str(slots), *flags)
        self.wait_for(lambda: self._address(), "the server listens")
        self.address = str(self._address())

    def _address(self) -> str | None:
        found = re.search(r"^listening on (http://\S+)$", self.log, re.MULTILINE)
        return found[1] if found else None

    def get(self, path: str) -> Any:
        with urllib.request.urlopen(self.address + path, timeout=60) as response:
            return json.load(response)


@contextlib.contextmanager
def llama_server(directory: Path, model: Path, slots: int = 2, **options: object) -> Iterator[LlamaServer]:
    server = LlamaServer(directory / "llama.log", model, slots, **options)
    try:
        yield server
    finally:
        server.kill()  # also ends a stopped process
