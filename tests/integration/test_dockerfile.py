"""The commands of docker/Dockerfile, in a copy of this machine that is thrown away and has none of its variables."""

import json
import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

_ROOT = Path(__file__).parents[2]
_NETWORK = re.compile("PIP_.*|.*_proxy|SSL_CERT_.*|REQUESTS_CA_BUNDLE", re.I)  # how this machine reaches packages
# A mount namespace of its own: what is mounted here is gone with the command.
_CHROOT = """
mount -t overlay overlay -o lowerdir=/,upperdir={0}/upper,workdir={0}/work {0}/root
for folder in dev proc sys; do mount --rbind /$folder {0}/root/$folder; done
exec chroot {0}/root "$@"
"""


def instructions() -> list[tuple[str, str]]:
    """Return the Dockerfile's instructions and their arguments, without comments."""
    lines = [line for line in (_ROOT / "docker" / "Dockerfile").read_text().splitlines() if not line.startswith("#")]
    text = "\n".join(lines).replace("\\\n", "")
    return [(name, rest.strip()) for name, _, rest in (line.partition(" ") for line in text.splitlines() if line)]


@pytest.fixture
def in_copy(tmp_path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs commands in a copy of this machine's root. What they change stays in tmp_path/upper."""
    for name in ("upper", "work", "root"):
        (tmp_path / name).mkdir()

    def run(*command: str) -> subprocess.CompletedProcess[str]:
        call = ["unshare", "--mount", "bash", "-euc", _CHROOT.format(tmp_path), "-", *command]
        return subprocess.run(call, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    if (done := run("true")).returncode:
        pytest.skip(f"no copy of this machine's root can be made: {done.stdout}")
    return run


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_the_dockerfiles_commands_make_an_environment_that_trains(in_copy, tmp_path):
    folder, shell = "/", ["/bin/sh", "-c"]
    variables = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
    variables |= {name: value for name, value in os.environ.items() if _NETWORK.fullmatch(name)}

    def run(command: str) -> str:
        given = [f"{name}={value}" for name, value in variables.items()]
        done = in_copy("env", "--ignore-environment", f"--chdir={folder}", *given, *shell, command)
        assert done.returncode == 0, done.stdout[-5000:]
        return done.stdout

    # Ubuntu 24.04, the image's base, has Python 3.12. Debian 12 has 3.11, under the name without a version.
    has_312 = subprocess.run(["apt-cache", "show", "python3.12-venv"], capture_output=True).stdout
    for name, rest in instructions():
        if name == "ARG" and rest.startswith("DEVICE="):
            variables["DEVICE"] = "cpu"
        elif name == "SHELL":
            shell = json.loads(rest)
        elif name == "WORKDIR":
            run(f"mkdir {rest}")  # fails if it exists: nothing of this machine's is in it
            folder = rest
        elif name == "ENV":
            key, _, value = rest.partition("=")
            variables[key] = value.replace("$PATH", variables["PATH"])
        elif name == "COPY":
            *sources, target = rest.split()
            if sources == ["."]:
                sources = re.findall(r"^!(.+)$", (_ROOT / ".dockerignore").read_text(), re.M)
            run(f"mkdir -p {target} && cp -r {' '.join(str(_ROOT / source) for source in sources)} {target}")
        elif name == "RUN":
            run(rest if has_312 else rest.replace("python3.12", "python3"))
        else:
            assert name in ("ARG", "FROM", "CMD"), name
    settings = "train.steps=1 train.batch_size=2 rollout.n=2 rollout.memory=0.25 task.train=8 task.held_out=4"
    output = run(
        f"python -m visurf_ray.train cluster.address=local output_dir=/tmp/run monitor.wandb=offline {settings}"
    )
    assert (tmp_path / "upper/tmp/run/summary.json").exists(), output
