"""HTTP clients for workers and parent controllers."""
