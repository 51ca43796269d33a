"""Top floor: HTTP. FastChat's routes and ours."""
