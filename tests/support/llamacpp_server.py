"""Runs a real llama.cpp server on a free port, and writes its address to the standard output.

    python llamacpp_server.py MODEL SLOTS [OPTION=VALUE ...]

The options are those of xllamacpp.CommonParams.
"""

import ast
import sys
import threading

NAME = "tiny"  # of the model
CONTEXT = 16_384  # tokens of a slot, enough for requests that run for a minute


def main() -> None:
    import xllamacpp

    model, slots, *options = sys.argv[1:]
    parameters = xllamacpp.CommonParams()
    parameters.model.path = model
    parameters.model_alias = {NAME}
    parameters.hostnames = ["127.0.0.1"]
    parameters.port = 0
    parameters.n_parallel = int(slots)
    parameters.n_ctx = CONTEXT * int(slots)
    parameters.warmup = False
    parameters.endpoint_metrics = True
    parameters.cpuparams.n_threads = 1
    for option in options:
        name, _, value = option.partition("=")
        assert hasattr(parameters, name), name
        setattr(parameters, name, ast.literal_eval(value))
    server = xllamacpp.Server(parameters)
    sys.stdout.write(f"listening on {server.listening_address}\n")
    sys.stdout.flush()
    threading.Event().wait()


if __name__ == "__main__":
    main()
