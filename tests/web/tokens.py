"""Tokens of each plane, and requests with them."""

import httpx

from tests.web.conftest import Api

TOKENS = {plane: f"{plane}-0123456789abcdef" for plane in ("worker", "client", "admin")}
SETTINGS = {f"{plane}_tokens": f"{plane}={secret}" for plane, secret in TOKENS.items()}


def bearer(secret: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {secret}"}


async def register(api: Api, secret: str, name: str, *models: str) -> httpx.Response:
    status = {"model_names": models or ("m",), "speed": 1, "queue_length": 0}
    body = {"worker_name": name, "check_heart_beat": True, "worker_status": status}
    return await api.http.post("/register_worker", json=body, headers=bearer(secret))
