"""Counts the workers that one request is sent to."""


class Tries:
    """The tries of one request, on the workers of all its models together.

    limit: maximum number of workers that it is sent to.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self.used = 0

    @property
    def left(self) -> int:
        """The number of workers that the request may still be sent to."""
        return max(self._limit - self.used, 0)

    def use(self) -> None:
        """Count a worker that the request is sent to."""
        self.used += 1
