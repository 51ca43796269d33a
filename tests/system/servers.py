"""Redis as real processes: a single server, a master with replicas and Sentinels, or a Cluster."""

import asyncio
import contextlib
import os
import shutil
import signal
import subprocess
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import Any

from ports import free_port
from redis.asyncio import Redis
from redis.crc import key_slot
from redis.exceptions import RedisError

from controller.store.embedded.server_process import find_server
from tests.conftest import NO_PROC_TITLE
from tests.support.waiting import wait_until

SERVER = shutil.which("redis-server") or str(find_server())


class Server:
    """A Redis server on a TCP port of its own. Its data directory survives kill() and start()."""

    def __init__(self, directory: Path, *options: str, port: int = 0, sentinel: bool = False) -> None:
        self.port = port or free_port()
        self.directory = directory / f"redis-{self.port}"
        self.directory.mkdir(parents=True)
        self.url = f"redis://127.0.0.1:{self.port}"
        self._sentinel = sentinel
        self._options = options
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    def start(self) -> None:
        """Start the server, for the first time or again after kill()."""
        if self._sentinel:
            config = self.directory / "sentinel.conf"
            if not config.exists():
                config.write_text("\n".join([f"port {self.port}", "bind 127.0.0.1", *self._options, ""]))
            command = [SERVER, str(config), "--sentinel", *NO_PROC_TITLE]
        else:
            port = ["--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self.directory)]
            command = [SERVER, *port, *self._options, *NO_PROC_TITLE]
        with (self.directory / "log").open("ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log, cwd=self.directory)

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def kill(self) -> None:
        """Send SIGKILL and wait until the server has ended."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def pause(self) -> None:
        """Send SIGSTOP. The server hangs and its connections stay open."""
        os.kill(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    def client(self) -> Redis:
        return Redis.from_url(self.url, decode_responses=True, socket_timeout=5.0, socket_connect_timeout=60.0)

    async def execute(self, *command: str) -> Any:
        """Return the reply to a command, or None if the command fails."""
        client = self.client()
        try:
            return await client.execute_command(*command)
        except (RedisError, OSError):
            return None
        finally:
            await client.aclose()

    async def answers(self) -> bool:
        return bool(await self.execute("PING"))

    async def role(self) -> str:
        """Return "master" or "slave", or "" if the server does not reply."""
        answer = await self.execute("ROLE")
        return str(answer[0]) if isinstance(answer, list) else ""


@contextlib.asynccontextmanager
async def single(directory: Path, *options: str) -> AsyncIterator[Server]:
    """Run one server. Without `options` it saves nothing to disk."""
    server = Server(directory, *(options or ("--save", "")))
    try:
        await wait_until(server.answers, "the server replies")
        yield server
    finally:
        server.kill()


class Sentinels:
    """A master with two replicas and three Sentinels. A Sentinel considers a master down after 2 s without a reply."""

    def __init__(self, directory: Path) -> None:
        data = ("--save", "", "--repl-diskless-sync-delay", "0")
        self._directory = directory
        self.first = Server(directory, *data)
        replicas = [Server(directory, *data, "--replicaof", f"127.0.0.1 {self.first.port}") for _ in range(2)]
        self.servers = [self.first, *replicas]
        self.sentinels: list[Server] = []

    async def build(self) -> None:
        await wait_until(self._replicas_connected, "both replicas are connected")
        watch = (
            f"sentinel monitor main 127.0.0.1 {self.first.port} 2",
            "sentinel down-after-milliseconds main 2000",
            "sentinel failover-timeout main 10000",
        )
        self.sentinels += [Server(self._directory, *watch, sentinel=True) for _ in range(3)]
        await wait_until(self._sentinels_connected, "each Sentinel lists both replicas and both other Sentinels")

    @property
    def url(self) -> str:
        hosts = ",".join(f"127.0.0.1:{sentinel.port}" for sentinel in self.sentinels)
        return f"redis+sentinel://{hosts}/main"

    async def _replicas_connected(self) -> bool:
        info = await self.first.execute("INFO", "replication")
        return isinstance(info, dict) and info.get("connected_slaves") == 2

    async def _sentinels_connected(self) -> bool:
        for sentinel in self.sentinels:
            state = await sentinel.execute("SENTINEL", "MASTER", "main")
            if not isinstance(state, dict) or (state["num-slaves"], state["num-other-sentinels"]) != ("2", "2"):
                return False
        return True

    async def master(self) -> Server | None:
        """Return the server that the first Sentinel reports as master, if the server agrees. None otherwise."""
        address = await self.sentinels[0].execute("SENTINEL", "GET-MASTER-ADDR-BY-NAME", "main")
        for server in self.servers:
            if (
                isinstance(address, (list, tuple))
                and int(address[1]) == server.port
                and await server.role() == "master"
            ):
                return server
        return None

    async def new_master(self, old: Server) -> Server | None:
        master = await self.master()
        return master if master is not old else None


@contextlib.asynccontextmanager
async def sentinels(directory: Path) -> AsyncIterator[Sentinels]:
    opened = Sentinels(directory)
    try:
        await opened.build()
        yield opened
    finally:
        for server in [*opened.sentinels, *opened.servers]:
            server.kill()


class Cluster:
    """Three masters with one replica each. A node counts as failed after 1 s without a reply."""

    def __init__(self, directory: Path) -> None:
        options = ("--save", "", "--cluster-enabled", "yes", "--cluster-node-timeout", "1000")
        diskless = ("--repl-diskless-sync-delay", "0", "--cluster-replica-validity-factor", "0")
        self.nodes = []
        for _ in range(6):
            port = free_port()
            bus = ("--cluster-port", str(free_port()))
            self.nodes.append(Server(directory, *options, *diskless, *bus, port=port))
        self.url = "redis+cluster://" + ",".join(f"127.0.0.1:{node.port}" for node in self.nodes[:3])

    async def build(self) -> None:
        await asyncio.gather(*(wait_until(node.answers, "the node replies") for node in self.nodes))
        first = self.nodes[0]
        for number, (begin, end) in enumerate(((0, 5460), (5461, 10922), (10923, 16383))):
            await self.nodes[number].execute("CLUSTER", "ADDSLOTSRANGE", str(begin), str(end))
        for number, node in enumerate(self.nodes):
            await node.execute("CLUSTER", "SET-CONFIG-EPOCH", str(number + 1))
        for node in self.nodes[1:]:
            bus = str(await node.execute("CONFIG", "GET", "cluster-port"))
            port = "".join(filter(str.isdigit, bus))
            await first.execute("CLUSTER", "MEET", "127.0.0.1", str(node.port), port)
        await wait_until(lambda: self._lists(first, 6), "the first node lists all six")
        for master, replica in zip(self.nodes[:3], self.nodes[3:], strict=True):
            name = str(await master.execute("CLUSTER", "MYID"))
            await wait_until(partial(self._replicate, replica, name), "the replica accepts its master")
        await wait_until(self.healthy, "the cluster is healthy")

    async def _lists(self, node: Server, number: int) -> bool:
        client = node.client()
        try:
            return int((await client.cluster("INFO"))["cluster_known_nodes"]) == number
        finally:
            await client.aclose()

    async def _replicate(self, replica: Server, master: str) -> bool:
        return await replica.execute("CLUSTER", "REPLICATE", master) is not None

    async def healthy(self) -> bool:
        """Return True if three masters serve all slots and each has a connected replica."""
        roles = []
        for node in self.nodes:
            client = node.client()
            try:
                state = (await client.cluster("INFO"))["cluster_state"]
                info = await client.info("replication")
            except (RedisError, OSError):
                return False
            finally:
                await client.aclose()
            roles.append((state, info["role"], info.get("master_link_status")))
        return sorted(roles, key=str) == [("ok", "master", None)] * 3 + [("ok", "slave", "up")] * 3

    async def owner(self, key: str) -> Server | None:
        """Return the master of a key's slot according to the masters. None if no master reports it."""
        slot = key_slot(key.encode())
        for node in self.nodes:
            if await node.role() == "master":
                for begin, end, (_, port, *_), *_ in await node.execute("CLUSTER", "SLOTS") or ():
                    if begin <= slot <= end:
                        return next(server for server in self.nodes if server.port == port)
        return None


@contextlib.asynccontextmanager
async def cluster(directory: Path) -> AsyncIterator[Cluster]:
    opened = Cluster(directory)
    try:
        await opened.build()
        yield opened
    finally:
        for node in opened.nodes:
            node.kill()
