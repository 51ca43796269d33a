"""Asks engines what they are, which models they serve, whether they are ready, and how many requests they have."""
