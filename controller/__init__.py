"""A controller cluster for LLM workers: FastChat's controller, with its state and its decisions in Redis."""

from importlib.metadata import version

__version__ = version("controller-cluster")
