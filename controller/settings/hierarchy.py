"""Settings of the hierarchy: the parent controllers, and the address of this cluster."""

from dataclasses import dataclass
from typing import ClassVar

from controller.domain.errors import InvalidInput, SettingsError
from controller.domain.worker import worker_name
from controller.security.parent_addresses import ParentAddress, parse_parent
from controller.settings import checks
from controller.settings.declaration import setting


@dataclass(frozen=True, kw_only=True)
class HierarchySettings:
    """Parents, and requests that pass through this cluster. Times are in seconds."""

    title: ClassVar = "Hierarchy"

    parent: str | None = setting(
        None,
        "Address of a parent controller, ours or FastChat's, at which this cluster registers as one worker: "
        "http://host:port. Separate several with commas. If the parent requires a token, write "
        "http://name:token@host:port, and use the environment variable.",
        has_password=True,
    )
    advertise: str | None = setting(
        None,
        "Address at which --parent and, with --by-way, clients reach this cluster, usually its load balancer's: "
        "http://host:port.",
    )
    by_way: bool = setting(
        False,
        "Give clients the address --advertise instead of a worker's, so that their requests pass through the "
        "controller. Then each request is counted from its start to its end. Otherwise clients send their requests to "
        "the workers, and their load is estimated.",
    )
    parent_interval: float = setting(
        45.0,
        "How often one of the replicas sends a heartbeat to each --parent.",
        also=["FASTCHAT_WORKER_HEART_BEAT_INTERVAL"],
    )

    @property
    def parents(self) -> tuple[str, ...]:
        """Addresses of the parent controllers, without credentials."""
        return tuple(parent.address for parent in self.parent_addresses)

    @property
    def parent_addresses(self) -> tuple[ParentAddress, ...]:
        """The parent controllers, with the credentials for them. Raises SettingsError if one is wrong."""
        return tuple(parse_parent(parent) for parent in self.parent.split(",")) if self.parent else ()

    def check_hierarchy(self) -> None:
        """Raise SettingsError if a value is wrong."""
        checks.positive_seconds(self, "parent_interval")
        if self.parent and not self.advertise:
            raise SettingsError("--parent needs --advertise: the address at which the parent reaches this cluster.")
        if self.by_way and not self.advertise:
            raise SettingsError("--by-way needs --advertise: the address at which clients reach this cluster.")
        if self.advertise and not (self.parent or self.by_way):
            raise SettingsError("--advertise needs --parent or --by-way, because nothing else uses the address.")
        _ = self.parent_addresses
        if self.advertise:
            _check_address("advertise", self.advertise)
            if worker_name(self.advertise) in self.parents:
                raise SettingsError(
                    "--parent and --advertise are the same address. A cluster cannot register at itself: change one."
                )


def _check_address(name: str, text: str) -> None:
    try:
        worker_name(text)
    except InvalidInput as error:
        raise SettingsError(f"--{name} must be an address such as http://top:21001: {error.problem}.") from error
