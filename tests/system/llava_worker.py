"""A worker with the heartbeat loop of LLaVA (llava/serve/model_worker.py) and of FastChat up to 0.2.20.

The loop catches only RequestException. Its pauses are shorter than in the original.
"""

import argparse
import logging
import threading
import time

import requests
import uvicorn
from fastapi import FastAPI

app = FastAPI()
logger = logging.getLogger("model_worker")
logging.basicConfig(level=logging.INFO)


class Worker:
    def __init__(self, arguments: argparse.Namespace) -> None:
        self.controller_addr = arguments.controller_address
        self.worker_name = arguments.worker_address
        self.interval = arguments.interval
        self.register_to_controller()
        threading.Thread(target=self.heart_beat_worker, daemon=True).start()

    def heart_beat_worker(self) -> None:
        while True:
            time.sleep(self.interval)
            self.send_heart_beat()

    def register_to_controller(self) -> None:
        logger.info("Register to controller")
        url = self.controller_addr + "/register_worker"
        data = {"worker_name": self.worker_name, "check_heart_beat": True, "worker_status": self.get_status()}
        r = requests.post(url, json=data)  # noqa: S113 - LLaVA sets no timeout here
        assert r.status_code == 200

    def send_heart_beat(self) -> None:
        logger.info("Send heart beat")
        url = self.controller_addr + "/receive_heart_beat"
        while True:
            try:
                ret = requests.post(url, json={"worker_name": self.worker_name, "queue_length": 0}, timeout=5)
                exist = ret.json()["exist"]
                break
            except requests.exceptions.RequestException as e:
                logger.warning("heart beat error: %s", e)
            time.sleep(self.interval)
        if not exist:
            self.register_to_controller()

    def get_status(self) -> dict[str, object]:
        return {"model_names": ["echo"], "speed": 1, "queue_length": 0}


@app.post("/worker_get_status")
async def get_status() -> dict[str, object]:
    return worker.get_status()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--worker-address", required=True)
    parser.add_argument("--controller-address", required=True)
    parser.add_argument("--interval", type=float, required=True)
    parsed = parser.parse_args()
    worker = Worker(parsed)
    uvicorn.run(app, host="127.0.0.1", port=parsed.port, log_level="warning")
