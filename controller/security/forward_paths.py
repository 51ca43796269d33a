"""Decides which paths are forwarded to workers (`--forward-paths`).

Engines serve management routes on the port that serves their clients: they load code, stop the engine or show its
configuration. A request for one of these is never forwarded.
"""

import logging
import re
from typing import Final

from controller.domain.errors import SettingsError

logger = logging.getLogger("controller")

# Paths of inference, as vLLM, SGLang, llama.cpp, TGI, Ollama, LMDeploy, LightLLM and Triton serve them.
DEFAULT: Final = (
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/responses",
    "/v1/messages",
    "/v1/messages/count_tokens",
    "/v1/embeddings",
    "/v1/rerank",
    "/v2/rerank",
    "/v1/score",
    "/v1/classify",
    "/v1/tokenize",
    "/v1/detokenize",
    "/v1/moderations",
    "/v1/audio/*",
    "/v1/images/*",
    "/chat/completions",
    "/completions",
    "/completion",
    "/responses",
    "/embeddings",
    "/embedding",
    "/embed",
    "/embed_all",
    "/embed_sparse",
    "/encode",
    "/rerank",
    "/reranking",
    "/score",
    "/similarity",
    "/classify",
    "/predict",
    "/pooling",
    "/generate",
    "/generate_stream",
    "/infer",
    "/infill",
    "/invocations",
    "/apply-template",
    "/tokenize",
    "/detokenize",
    "/api/chat",
    "/api/generate",
    "/api/embed",
    "/api/embeddings",
)

# Parts of paths that belong to management, wherever they stand in a path. `*` at the end stands for anything.
_MANAGEMENT: Final = (
    "abort",
    "abort_request",
    "abort_requests",
    "add_external_corpus",
    "admin",
    "attach_hicache_storage_backend",
    "capacities",
    "clear_hicache_storage_backend",
    "close_session",
    "collective_rpc",
    "configure_logging",
    "continue_generation",
    "convert_disaggregation_role",
    "create_token",
    "cudasharedmemory",
    "debug",
    "destroy_weights_update_group",
    "detach_hicache_storage_backend",
    "diagnosis",
    "distserve",
    "drain_worker",
    "dump_expert_distribution_record",
    "engines",
    "events",
    "explain",
    "finish_weight*",
    "flush_cache",
    "free_cache",
    "freeze_gc",
    "get_server_info",
    "get_weight*",
    "hicache",
    "init_weight*",
    "internal",
    "is_paused",
    "is_scaling_elastic_ep",
    "is_sleeping",
    "load",
    "load_lora_adapter*",
    "lora-adapters",
    "lora_adapters",
    "metrics",
    "model_routes",
    "open_session",
    "overview",
    "pause",
    "pause_generation",
    "prometheus",
    "props",
    "receive_heart_beat",
    "refresh_all_workers",
    "register_engine",
    "register_worker",
    "release_memory*",
    "remove_external_corpus",
    "remove_model_route",
    "remove_worker",
    "replicas",
    "repository",
    "reset_encoder_cache",
    "reset_mm_cache",
    "reset_prefix_cache",
    "resume",
    "resume_generation",
    "resume_memory*",
    "resume_worker",
    "revoke_token",
    "scale_elastic_ep",
    "send_weight*",
    "server_info",
    "set_capacity",
    "set_internal_state",
    "set_model_route",
    "set_trace_level",
    "shutdown",
    "sleep",
    "slots",
    "slow_down",
    "start_expert_distribution_record",
    "start_profile",
    "start_weight*",
    "stop_expert_distribution_record",
    "stop_profile",
    "systemsharedmemory",
    "terminate",
    "tokens",
    "trace",
    "unload",
    "unload_lora_adapter*",
    "update_weight*",
    "wake_up",
    "wakeup",
    "weights_checker",
    "workers",
)
# Management whose parts are common words: of Ollama, which has its routes for clients below /api too, and of Triton.
_MANAGEMENT_PATHS: Final = (
    "/api/blobs/",
    "/api/copy/",
    "/api/create/",
    "/api/delete/",
    "/api/pull/",
    "/api/push/",
    "/v2/logging/",
)
_EXACT_MANAGEMENT: Final = frozenset(part for part in _MANAGEMENT if not part.endswith("*"))
_MANAGEMENT_PREFIXES: Final = tuple(part[:-1] for part in _MANAGEMENT if part.endswith("*"))

# A path has one spelling: no empty part, no dot at the start of a part, nothing encoded, and no parameters after `;`.
# So the path that is checked is the path that is sent: no server and no client has anything to normalise in it.
_PATH: Final = re.compile(r"(/[A-Za-z0-9_-][A-Za-z0-9_.-]*)+/?\Z")
_MAX_LENGTH: Final = 128
_MAX_LOGGED: Final = 100


class ForwardPaths:
    """The paths that are forwarded. Those of FastChat's workers, such as /worker_generate, are routes of their own.

    paths: the value of --forward-paths, without the paths of the parts "default".

    Raises SettingsError if it is wrong.
    """

    def __init__(self, paths: str = "default") -> None:
        self._exact: set[str] = set()
        self._prefixes: tuple[str, ...] = ()
        self._logged: set[str] = set()
        for part in paths.split(",") if paths else ():
            for path in DEFAULT if part.strip() == "default" else (part.strip(),):
                self._add(path)

    def _add(self, path: str) -> None:
        prefix = path.endswith("/*")
        name = path[:-1] if prefix else path
        if not (path == "/*" or _is_plain(name)):
            raise SettingsError(
                f"--forward-paths must have paths such as /v1/rerank or /v1/audio/*, separated by commas. This one is "
                f"wrong: {path!r}. A path consists of letters, digits, dots, dashes and underscores between slashes."
            )
        if is_management(name):
            raise SettingsError(
                f"--forward-paths has {path}, which is for the management of an engine. Such paths are never "
                "forwarded. Remove it, and send such requests to the engine directly."
            )
        if prefix:
            self._prefixes += (name,)
        else:
            self._exact.add(name)

    @property
    def exact(self) -> frozenset[str]:
        """The paths that the list has itself, and not only a prefix of them."""
        return frozenset(self._exact)

    def lists(self, path: str) -> bool:
        """Return True if the list has the path itself, and not only a prefix of it."""
        return path in self._exact

    def allows(self, path: str) -> bool:
        """Return True if requests for a path are forwarded.

        path: as it would be sent to a worker.
        """
        if path in self._exact:  # it was checked when it was added
            return True
        if not _is_plain(path):
            return False
        # Engines answer a slash at the end with a redirect to their own address.
        if path.startswith(self._prefixes) and not path.endswith("/") and not is_management(path):
            return True
        self._log(path)
        return False

    def _log(self, path: str) -> None:
        """Log a refused path once. At most 100 paths are logged, because clients choose them."""
        if path not in self._logged and len(self._logged) < _MAX_LOGGED:
            self._logged.add(path)
            reason = "it is for the management of an engine" if is_management(path) else "--forward-paths lacks it"
            logger.info(
                "A request for %(path)s gets a 404 and is not forwarded: %(reason)s. This is logged once.",
                {"path": path, "reason": reason},
            )


def _is_plain(path: str) -> bool:
    return len(path) <= _MAX_LENGTH and bool(_PATH.match(path))


def is_management(path: str) -> bool:
    """Return True if a path belongs to the management of an engine or a controller, in any case of letters."""
    lowered = path.lower()
    return any(
        part in _EXACT_MANAGEMENT or part.startswith(_MANAGEMENT_PREFIXES) for part in lowered.split("/")
    ) or f"{lowered}/".startswith(_MANAGEMENT_PATHS)
