"""HTTP clients for workers, engines and parent controllers."""
