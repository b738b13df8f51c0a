"""Two machines on one: network namespaces that a cable joins, and a Ray cluster with a node in each.

Each has an address of its own, and neither reaches the other's loopback. They share what a cluster's storage would give
them, the file system, and also processors and /dev/shm. Needs root and iproute2.

    with two_machines() as machines, ray_on(machines) as environment:
        subprocess.run(machines[0].command("ray", "status"), env=environment)
"""

import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

_PORT = 6379  # of Ray's head; a namespace has all ports to itself


class NoNamespacesError(Exception):
    """This machine lets us make no network namespaces; the message says why."""


@dataclass(frozen=True)
class Machine:
    """A network namespace.

    Attributes:
        name: the namespace's.
        address: that of its end of the cable.
    """

    name: str
    address: str

    def command(self, *command: str) -> list[str]:
        """Return the command that runs this command there."""
        return ["ip", "netns", "exec", self.name, *command]


@contextmanager
def two_machines() -> Iterator[list[Machine]]:
    """Make two machines; at the end all processes that run there are killed.

    Raises:
        NoNamespacesError: that is not possible here.
    """
    if os.getuid() or not shutil.which("ip"):
        raise NoNamespacesError("network namespaces need root and the command `ip` (iproute2)")
    machines = [Machine(f"visurf-{os.getpid()}-{number}", f"10.83.0.{number}") for number in (1, 2)]
    first, second = (machine.name for machine in machines)
    with ExitStack() as stack:
        for machine in machines:
            _ip("netns", "add", machine.name)
            stack.callback(_remove, machine)
        _ip("link", "add", "cable", "netns", first, "type", "veth", "peer", "name", "cable", "netns", second)
        for machine in machines:
            _ip("-n", machine.name, "address", "add", f"{machine.address}/24", "dev", "cable")
            for device in ("lo", "cable"):
                _ip("-n", machine.name, "link", "set", device, "up")
        yield machines


def _ip(*arguments: str) -> str:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True)
    if done.returncode:
        raise NoNamespacesError(f"`ip {' '.join(arguments)}` fails here: {done.stderr.strip()}")
    return done.stdout


def _remove(machine: Machine) -> None:
    deadline = time.monotonic() + 30
    while (processes := _ip("netns", "pids", machine.name).split()) and time.monotonic() < deadline:
        for process in map(int, processes):
            try:
                os.kill(process, signal.SIGKILL)
            except ProcessLookupError:
                continue  # it has just ended
        time.sleep(0.1)
    _ip("netns", "delete", machine.name)


@contextmanager
def ray_on(machines: Sequence[Machine], *, cpus: int = 2) -> Iterator[dict[str, str]]:
    """Start a Ray head on the first machine and a node on each other, with token authentication.

    Yields the environment of programs that use this cluster.
    """
    folder = Path(tempfile.mkdtemp(prefix="vst.", dir="/tmp"))  # short: a socket's path has 107 characters at most
    head = f"{machines[0].address}:{_PORT}"
    environment = os.environ | {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_TMPDIR": str(folder),  # where `ray start` notes its address: other programs here must not find this Ray
        "RAY_ADDRESS": head,
    }
    started: list[subprocess.Popen[bytes]] = []
    try:
        for number, machine in enumerate(machines):
            role = [f"--address={head}"] if number else ["--head", f"--port={_PORT}"]
            command = [str(Path(sys.executable).with_name("ray")), "start", "--block", "--disable-usage-stats", *role]
            command += [f"--node-ip-address={machine.address}", f"--temp-dir={folder}/{number}"]
            command += [f"--num-cpus={cpus}", "--object-store-memory=500000000"]
            log = folder / f"start-{number}.log"
            with log.open("wb") as output:
                variables = {name: value for name, value in environment.items() if name != "RAY_ADDRESS"}
                started.append(subprocess.Popen(machine.command(*command), stdout=output, stderr=output, env=variables))
            _wait_until_started(started, folder)
        yield environment
    finally:
        for process in reversed(started):
            process.terminate()
        for process in started:
            try:
                process.wait(timeout=60)
            except subprocess.TimeoutExpired:
                process.kill()
        shutil.rmtree(folder, ignore_errors=True)


def _wait_until_started(nodes: Sequence[subprocess.Popen[bytes]], folder: Path) -> None:
    """Wait for the newest node; one started earlier may end meanwhile."""
    logs = [folder / f"start-{number}.log" for number in range(len(nodes))]
    deadline = time.monotonic() + 120
    while "Ray runtime started" not in logs[-1].read_text():
        if any(node.poll() is not None for node in nodes) or time.monotonic() > deadline:
            ends = [log.read_text()[-3000:] for log in logs]
            raise RuntimeError("Ray did not start, or a node has ended:\n" + "\n".join(ends))
        time.sleep(0.1)
