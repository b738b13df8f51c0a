"""What a run on one machine shows to others: the sockets on which it listens, and the keys in its environment."""

import os
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from tests.integration.runs import SMALL

CANARIES = {
    "WANDB_API_KEY": "c0ffee00" * 5,
    "HF_TOKEN": "hf_CANARYcanaryCANARYcanary",
    "AWS_SECRET_ACCESS_KEY": "canaryAWSsecretCANARY",
    "AWS_ACCESS_KEY_ID": "AKIACANARYCANARY",
}
IN_NETRC = "netrcCANARYnetrc"


@pytest.fixture(scope="module")
def watched(tmp_path_factory) -> tuple[Path, set[tuple[str, str]], list[str]]:
    """A run of one step: the folder above all that it writes, (process, address) that listened, and command lines."""
    folder = tmp_path_factory.mktemp("leaks")
    (folder / "home").mkdir()
    (folder / "home" / ".netrc").write_text(f"machine api.wandb.ai\n  login user\n  password {IN_NETRC}\n")
    ray_folder = tmp_path_factory.mktemp("r")
    variables = (
        os.environ
        | CANARIES
        | {
            "WANDB_MODE": "offline",
            "NETRC": str(folder / "home" / ".netrc"),
            "RAY_TMPDIR": str(ray_folder),
        }
    )
    settings = ["train.steps=1", "train.checkpoint_every=1", "eval.every=0", f"output_dir={folder}/run"]
    command = [sys.executable, "-m", "visurf_ray.train", "cluster.address=local", *SMALL, *settings]
    sockets: set[tuple[str, str]] = set()
    lines: set[str] = set()
    with (folder / "output.txt").open("w") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=variables)
        try:
            while process.poll() is None:
                with suppress(psutil.Error):
                    for each in [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]:
                        with suppress(psutil.Error):
                            line = " ".join(each.cmdline())
                            lines.add(line)
                            found = [c for c in each.net_connections("tcp") if c.status == psutil.CONN_LISTEN]
                            sockets |= {(line, connection.laddr.ip) for connection in found}
                time.sleep(0.2)
        finally:
            process.kill()  # the one that was started here; a no-op after its end
            process.wait()
    assert process.returncode == 0, (folder / "output.txt").read_text()[-3000:]
    (folder / "ray").symlink_to(ray_folder)
    return folder, sockets, sorted(lines)


def test_no_key_is_in_an_output_or_a_command_line(watched):
    folder, _, lines = watched
    secrets = [*CANARIES.values(), IN_NETRC]
    assert [line for line in lines if any(secret in line for secret in secrets)] == []
    files = [Path(base) / name for base, _, names in os.walk(folder, followlinks=True) for name in names]
    files = [file for file in files if file.is_file() and file.name != ".netrc"]
    assert any("session_" in str(file) for file in files), "Ray's logs are looked at"
    holding = [file for file in files for secret in secrets if secret.encode() in file.read_bytes()]
    assert holding == []


def test_nothing_listens_beyond_loopback_but_what_is_known(watched):
    _, sockets, _ = watched
    beyond = {line for line, address in sockets if not address.startswith(("127.", "::1", "::ffff:127."))}
    assert beyond == set()
