"""Runs the llama.cpp server of the package xllamacpp on port 8080, until it gets SIGTERM.

    python serve.py MODEL.gguf

A real llama.cpp server does the same with: llama-server -m MODEL.gguf --alias tiny --host 0.0.0.0 -np 4 --metrics
"""

import signal
import sys

import xllamacpp

PARALLEL = 4  # requests at once
CONTEXT = 4096  # tokens of each of them


def main() -> None:
    """Serve the model."""
    parameters = xllamacpp.CommonParams()
    parameters.model.path = sys.argv[1]
    parameters.model_alias = {"tiny"}
    parameters.hostnames = ["0.0.0.0"]
    parameters.port = 8080
    parameters.n_parallel = PARALLEL
    parameters.n_ctx = PARALLEL * CONTEXT
    parameters.n_predict = 256  # tokens, if a request names no limit: the model has no end of its own
    parameters.warmup = False
    parameters.endpoint_metrics = True  # the controller reads the load there
    server = xllamacpp.Server(parameters)
    sys.stdout.write(f"listening on {server.listening_address}\n")
    signal.sigwait({signal.SIGTERM, signal.SIGINT})


if __name__ == "__main__":
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})  # also for the threads of the server
    main()
