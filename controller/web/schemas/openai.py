"""OpenAI's wire format: errors and the list of models."""

from collections.abc import Iterable
from typing import Annotated, Final, Literal

from msgspec import UNSET, Struct, UnsetType
from msgspec.json import Encoder

from controller.domain.engine_status import EngineModel
from controller.json_bodies import described

_encode: Final = Encoder().encode
_PREFIX: Final = "/v1/"
_TYPES: Final = {
    401: "authentication_error",
    403: "permission_error",
    429: "rate_limit_error",
}
_OWNER: Final = "controller-cluster"


class OpenAiErrorDescription(Struct):
    """The description of an error in OpenAI's form."""

    code: Annotated[str, described("A stable code for programs.", "invalid_input")]
    message: Annotated[str, described("What happened, what it means and what to do. The text may change.")]
    type: Annotated[
        str | UnsetType, described("OpenAI's kind of the error. Left out if the head of the request was not read.")
    ] = UNSET
    param: Annotated[
        str | UnsetType | None, described("The wrong field of the request. `null` if it is no single field.")
    ] = UNSET


class OpenAiError(Struct):
    """An error of the controller in OpenAI's form."""

    error: OpenAiErrorDescription


class OpenAiModel(Struct):
    """A model that a live engine serves."""

    id: Annotated[str, described("The name of the model.", "qwen-7b")]
    object: Literal["model"] = "model"
    created: Annotated[int, described("Always 0: the controller does not know when a model was made.", 0)] = 0
    owned_by: Annotated[str, described("Always `controller-cluster`.", _OWNER)] = _OWNER
    max_model_len: Annotated[
        int | UnsetType,
        described("Largest number of tokens of a prompt and its completion at each engine of the model, if known."),
    ] = UNSET
    hops: Annotated[
        str | UnsetType,
        described(
            "Only for other controllers: the ids of the clusters that a request for the model passes, from here."
        ),
    ] = UNSET


class OpenAiModels(Struct):
    """The models that live engines serve."""

    data: Annotated[list[OpenAiModel], described("The models, sorted by name.")]
    object: Literal["list"] = "list"


def is_openai_path(path: str) -> bool:
    """Return True if errors for a path have OpenAI's form."""
    return path.startswith(_PREFIX)


def error_body(status: int, code: str, message: str, param: str | None = None) -> bytes:
    """Return the JSON body of an error of ours in OpenAI's form.

    param: the field of the request that is wrong. None if it is no single field.
    """
    kind = _TYPES.get(status, "server_error" if status >= 500 else "invalid_request_error")
    return _encode({"error": {"message": message, "type": kind, "param": param, "code": code}})


def error_event(code: str, message: str) -> bytes:
    """Return the last part of a stream of server-sent events that has broken off.

    It begins with an empty line, which ends an event of which only a part has arrived.
    """
    return b"\n\ndata: " + error_body(500, code, message) + b"\n\n"


def model_body(model: EngineModel) -> bytes:
    """Return the description of a model."""
    return _encode(_described(model))


def models_body(models: Iterable[EngineModel]) -> bytes:
    """Return the list of models."""
    return _encode(OpenAiModels([_described(model) for model in models]))


def _described(model: EngineModel) -> OpenAiModel:
    length = UNSET if model.max_length is None else model.max_length
    return OpenAiModel(model.name, max_model_len=length, hops=model.hops or UNSET)
