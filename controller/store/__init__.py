"""East wing: Redis, and nothing else. What the registry holds and how it is asked."""
