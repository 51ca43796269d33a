"""The route table, the handlers by subject, and what several handlers share."""
