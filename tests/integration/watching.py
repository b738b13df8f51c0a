"""What is seen of a run's processes while it lasts: where they listen, their command lines, and their OpenMP."""

import os
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from subprocess import CompletedProcess

import grpc
import psutil
from ray.core.generated import gcs_service_pb2, gcs_service_pb2_grpc

from tests.processes import Family

CANARIES = {
    "WANDB_API_KEY": "c0ffee00" * 5,
    "HF_TOKEN": "hf_CANARYcanaryCANARYcanary",
    "AWS_SECRET_ACCESS_KEY": "canaryAWSsecretCANARY",
}
_SECONDS = 0.5  # between two looks


@dataclass
class Seen:
    """What was seen of a run.

    Attributes:
        sockets: the name of a process and the address on which it listened.
        lines: the command lines of its processes.
        with_intel_openmp: those of the processes that have loaded Intel's OpenMP.
        answer: what Ray's control store answered to a question without a token, by the name of gRPC's status; None if
            it was not found.
        logs: the folder of Ray's logs.
        left: its processes that lived on after its end, and the names in /dev/shm that it has left.
    """

    sockets: set[tuple[str, str]] = field(default_factory=set)
    lines: set[str] = field(default_factory=set)
    with_intel_openmp: set[str] = field(default_factory=set)
    answer: str | None = None
    logs: Path = Path()
    left: tuple[list[str], list[str]] = ([], [])

    def look(self, family: Family) -> None:
        """Look at all its processes."""
        for process in family.living():
            with suppress(psutil.Error, FileNotFoundError, ProcessLookupError):
                line = " ".join(process.cmdline()) or process.name()  # while a process begins or ends it has none
                self.lines.add(line)
                if "libiomp5" in Path(f"/proc/{process.pid}/maps").read_text():
                    self.with_intel_openmp.add(line)
                for connection in process.net_connections("tcp"):
                    if connection.status == psutil.CONN_LISTEN:
                        self.sockets.add((line[:200], connection.laddr.ip))
                        asked = self.answer in ("OK", "UNAUTHENTICATED")  # else it may not have been ready
                        if "gcs_server" in line and not asked:
                            self.answer = _asked(f"{connection.laddr.ip}:{connection.laddr.port}")


def _asked(address: str) -> str:
    """Ask Ray's control store for its nodes, without a token."""
    with grpc.insecure_channel(address.removeprefix("::ffff:")) as channel:
        store = gcs_service_pb2_grpc.NodeInfoGcsServiceStub(channel)
        try:
            store.GetAllNodeInfo(gcs_service_pb2.GetAllNodeInfoRequest(), timeout=10)
        except grpc.RpcError as error:
            return str(error.code().name)
    return "OK"


@contextmanager
def watched(command: list[str], environment: dict[str, str]) -> Iterator[tuple[CompletedProcess[str], Seen]]:
    """Run a command with canaries for keys in its environment, and look at it meanwhile.

    Ray's logs are there until the context ends.
    """
    seen, over = Seen(), threading.Event()
    with tempfile.TemporaryDirectory(prefix="r", dir="/tmp") as logs:  # short: Ray's sockets are in it
        seen.logs = Path(logs)
        variables = os.environ | environment | CANARIES | {"RAY_TMPDIR": logs}
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=variables
        ) as process:
            family = Family(process.pid)

            def watch() -> None:
                while not over.wait(_SECONDS):
                    seen.look(family)

            watcher = threading.Thread(target=watch)
            watcher.start()
            try:
                stdout, stderr = process.communicate(timeout=500)
            finally:
                over.set()
                watcher.join()
                process.kill()  # the one that was started here; it does nothing after its end
            seen.left = family.left(seconds=30)
        yield CompletedProcess(command, process.returncode, stdout, stderr), seen


def holding(folders: list[Path], secrets: list[str]) -> list[Path]:
    """Return the files below the folders that hold one of the secrets."""
    files = [Path(base) / name for folder in folders for base, _, names in os.walk(folder) for name in names]
    return [
        file
        for file in files
        if file.is_file() and not file.is_symlink() and any(each.encode() in file.read_bytes() for each in secrets)
    ]
