"""A controller cluster for LLM workers. It replaces FastChat's controller and keeps its state in Redis."""

from importlib.metadata import version

__version__ = version("controller-cluster")
