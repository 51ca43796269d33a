"""Workers to register."""

from controller.domain.worker import Registration, WorkerStatus

A, B, C = "http://a:1", "http://b:1", "http://c:1"


def worker(
    name: str,
    *models: str,
    speed: float = 1,
    queue_length: int = 0,
    check_heart_beat: bool = True,
    multimodal: bool = False,
) -> Registration:
    return Registration(name, WorkerStatus(models or ("m",), speed, queue_length), check_heart_beat, multimodal)
