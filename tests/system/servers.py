"""Redis as users run it: one server, one with replicas and Sentinels, a Cluster; each a set of real processes."""

import asyncio
import contextlib
import os
import shutil
import signal
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from redis.asyncio import Redis
from redis.crc import key_slot
from redis.exceptions import RedisError

from controller.store.embedded.server_process import find_server
from tests.conftest import NO_PROC_TITLE
from tests.support.waiting import wait_until
from tests.system.processes import free_port

SERVER = shutil.which("redis-server") or str(find_server())


class Server:
    """A server on a TCP port of its own; its data stay when it is killed and started again."""

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
        """Start it, again if it was killed."""
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
        """kill -9."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def stop(self) -> None:
        """SIGSTOP: it hangs, its connections stay open."""
        os.kill(self.pid, signal.SIGSTOP)

    def go_on(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    def client(self) -> Redis:
        return Redis.from_url(self.url, decode_responses=True, socket_timeout=5.0)

    async def ask(self, *command: str) -> Any:
        """The answer to a command, or None if there is none."""
        client = self.client()
        try:
            return await client.execute_command(*command)
        except (RedisError, OSError):
            return None
        finally:
            await client.aclose()

    async def answers(self) -> bool:
        return bool(await self.ask("PING"))

    async def role(self) -> str:
        """master or slave; "" if it does not answer."""
        answer = await self.ask("ROLE")
        return str(answer[0]) if isinstance(answer, list) else ""


@contextlib.asynccontextmanager
async def single(directory: Path, *options: str) -> AsyncIterator[Server]:
    """One server, which keeps its data if `options` say so."""
    server = Server(directory, *(options or ("--save", "")))
    try:
        await wait_until(server.answers, "the server answers")
        yield server
    finally:
        server.kill()


class Sentinels:
    """A master with two replicas, watched by three Sentinels: each takes a master that is silent for 2 s for dead."""

    def __init__(self, directory: Path) -> None:
        data = ("--save", "", "--repl-diskless-sync-delay", "0")
        self._directory = directory
        self.first = Server(directory, *data)
        replicas = [Server(directory, *data, "--replicaof", f"127.0.0.1 {self.first.port}") for _ in range(2)]
        self.servers = [self.first, *replicas]
        self.sentinels: list[Server] = []

    async def build(self) -> None:
        await wait_until(self._followed, "the replicas follow")
        watch = (
            f"sentinel monitor main 127.0.0.1 {self.first.port} 2",
            "sentinel down-after-milliseconds main 2000",
            "sentinel failover-timeout main 10000",
        )
        self.sentinels += [Server(self._directory, *watch, sentinel=True) for _ in range(3)]
        await wait_until(self._acquainted, "the Sentinels know the replicas and each other")

    @property
    def url(self) -> str:
        hosts = ",".join(f"127.0.0.1:{sentinel.port}" for sentinel in self.sentinels)
        return f"redis+sentinel://{hosts}/main"

    async def _followed(self) -> bool:
        info = await self.first.ask("INFO", "replication")
        return isinstance(info, dict) and info.get("connected_slaves") == 2

    async def _acquainted(self) -> bool:
        for sentinel in self.sentinels:
            told = await sentinel.ask("SENTINEL", "MASTER", "main")
            if not isinstance(told, dict) or (told["num-slaves"], told["num-other-sentinels"]) != ("2", "2"):
                return False
        return True

    async def master(self) -> Server | None:
        """The server that the first Sentinel takes for the master, if it does so itself."""
        address = await self.sentinels[0].ask("SENTINEL", "GET-MASTER-ADDR-BY-NAME", "main")
        for server in self.servers:
            if (
                isinstance(address, (list, tuple))
                and int(address[1]) == server.port
                and await server.role() == "master"
            ):
                return server
        return None

    async def other_master(self, than: Server) -> Server | None:
        master = await self.master()
        return master if master is not than else None


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
    """Three masters, each with a replica; a node that is silent for 1 s is taken for dead."""

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
        await asyncio.gather(*(wait_until(node.answers, "the node answers") for node in self.nodes))
        first = self.nodes[0]
        for number, (begin, end) in enumerate(((0, 5460), (5461, 10922), (10923, 16383))):
            await self.nodes[number].ask("CLUSTER", "ADDSLOTSRANGE", str(begin), str(end))
        for number, node in enumerate(self.nodes):
            await node.ask("CLUSTER", "SET-CONFIG-EPOCH", str(number + 1))
        for node in self.nodes[1:]:
            bus = str(await node.ask("CONFIG", "GET", "cluster-port"))
            port = "".join(filter(str.isdigit, bus))
            await first.ask("CLUSTER", "MEET", "127.0.0.1", str(node.port), port)
        await wait_until(lambda: self._knows(first, 6), "the nodes know each other")
        for master, replica in zip(self.nodes[:3], self.nodes[3:], strict=True):
            name = str(await master.ask("CLUSTER", "MYID"))
            await wait_until(lambda r=replica, n=name: self._follow(r, n), "the replica follows")
        await wait_until(self.healthy, "the cluster is healthy")

    async def _knows(self, node: Server, number: int) -> bool:
        client = node.client()
        try:
            return int((await client.cluster("INFO"))["cluster_known_nodes"]) == number
        finally:
            await client.aclose()

    async def _follow(self, replica: Server, master: str) -> bool:
        return await replica.ask("CLUSTER", "REPLICATE", master) is not None

    async def healthy(self) -> bool:
        """Whether all slots are served by three masters, and each has a replica in step with it."""
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
        """The master of a key's slot, as the masters see it."""
        slot = key_slot(key.encode())
        for node in self.nodes:
            if await node.role() == "master":
                for begin, end, (_, port, *_), *_ in await node.ask("CLUSTER", "SLOTS") or ():
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
