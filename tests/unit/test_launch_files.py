"""The files of launch/ and docker/: shellcheck and hadolint find nothing, and the tools accept the YAML files."""

import json
import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from visurf_ray.config.load import load_config

_ROOT = Path(__file__).parents[2]
_SCHEMAS = Path(__file__).parent / "data" / "schemas"
_SCRIPTS = [*_ROOT.glob("launch/*.sh"), _ROOT / "launch/slurm.sbatch", _ROOT / ".ci/run"]
_RAY = re.search(r"ray\[default\]==([\d.]+)", (_ROOT / "pyproject.toml").read_text()).group(1)  # type: ignore[union-attr]


def load(path: str) -> dict[str, Any]:
    return yaml.safe_load((_ROOT / path).read_text())


def lint(tool: str, *arguments: str | Path, text: str | None = None) -> None:
    command = [tool, *map(str, arguments)]
    done = subprocess.run(command, cwd=_ROOT, input=text, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def overrides(command: str) -> list[str]:
    """Return the Hydra overrides in a command line."""
    return [word for word in shlex.split(command) if "=" in word]


@pytest.mark.parametrize("script", _SCRIPTS, ids=lambda path: path.name)
def test_shellcheck_finds_nothing(script):
    lint("shellcheck", "--external-sources", "--source-path=SCRIPTDIR/..", script)


def test_shellcheck_finds_nothing_in_the_commands_of_skypilot():
    task = load("launch/skypilot.yaml")
    for commands in (task["setup"], task["run"]):
        lint("shellcheck", "--shell=bash", "-", text=commands)


def test_hadolint_finds_nothing():
    lint("hadolint", "docker/Dockerfile")


def test_what_the_dockerfile_copies_reaches_the_build():
    text = (_ROOT / "docker/Dockerfile").read_text()
    kept = [line[1:] for line in (_ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    copied = [source for line in re.findall(r"^COPY (.+)$", text, re.M) for source in line.split()[:-1]]
    for source in copied:
        assert (_ROOT / source).exists()
        assert source == "." or source.split("/")[0] in kept, f".dockerignore leaves out {source}"


@pytest.mark.parametrize("name", ["aws", "gcp"])
def test_ray_up_accepts_the_cluster(name):
    from ray.autoscaler._private.util import prepare_config, validate_config

    cluster = load(f"launch/ray_up_{name}.yaml")
    validate_config(prepare_config(cluster))
    workers = cluster["available_node_types"]["worker"]
    assert workers["min_workers"] == workers["max_workers"] == cluster["max_workers"]
    assert cluster["file_mounts"] == {"/root/.ray/auth_token": "~/.ray/auth_token"}
    assert "--env RAY_AUTH_MODE=token" in cluster["docker"]["run_options"]


def closed(schema: Any) -> Any:
    """Return the schema without additional properties, as `kubectl` validates: it refuses unknown fields."""
    if isinstance(schema, list):
        return [closed(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    inner = {key: closed(value) for key, value in schema.items()}
    if "properties" in schema and "additionalProperties" not in schema:
        inner["additionalProperties"] = False
    return inner


@pytest.mark.parametrize("kind", ["RayCluster", "RayJob"])
def test_kuberay_accepts_the_resource(kind):
    resource = load(f"launch/kuberay/{kind.lower()}.yaml")
    assert resource["kind"] == kind
    schema = json.loads((_SCHEMAS / "kuberay.json").read_text())
    jsonschema.validate(resource, closed({"$ref": f"#/$defs/{kind}", "$defs": schema["$defs"]}))


def test_both_resources_of_kuberay_are_of_one_cluster():
    cluster, job = load("launch/kuberay/raycluster.yaml"), load("launch/kuberay/rayjob.yaml")
    assert job["spec"]["rayClusterSpec"] == cluster["spec"]
    assert str(cluster["spec"]["rayVersion"]) == _RAY
    yaml.safe_load(job["spec"]["runtimeEnvYAML"])


def test_compose_accepts_the_services():
    compose = load("docker/compose.yaml")
    jsonschema.Draft7Validator(json.loads((_SCHEMAS / "compose.json").read_text())).validate(compose)
    assert set(compose["services"]) == {"head", "worker"}
    for service in compose["services"].values():
        assert service["environment"]["RAY_AUTH_MODE"] == "token"
        assert (_ROOT / "docker" / service["build"]["context"] / service["build"]["dockerfile"]).is_file()


# https://docs.skypilot.co/en/stable/reference/yaml-spec.html
_SKYPILOT = {
    "task": "name workdir num_nodes resources envs secrets volumes file_mounts setup run config",
    "resources": "infra accelerators cpus memory instance_type use_spot disk_size disk_tier network_tier image_id "
    "ports labels autostop any_of ordered job_recovery",
    "bucket": "name source store persistent mode config",
}


def test_skypilot_knows_every_field():
    fields = {part: set(names.split()) for part, names in _SKYPILOT.items()}
    task = load("launch/skypilot.yaml")
    (bucket,) = task["file_mounts"].values()
    assert task.keys() <= fields["task"]
    assert task["resources"].keys() <= fields["resources"]
    assert bucket.keys() <= fields["bucket"] and bucket["mode"] in ("MOUNT", "COPY", "MOUNT_CACHED")


@pytest.mark.parametrize(
    "command",
    [
        load("launch/kuberay/rayjob.yaml")["spec"]["entrypoint"],
        load("launch/skypilot.yaml")["envs"]["OVERRIDES"],
        *re.findall(r"submit\.sh http\S+ (output_dir[^[…\n]*)", (_ROOT / "docker/compose.yaml").read_text()),
    ],
)
def test_the_overrides_exist_and_put_the_run_on_shared_storage(command):
    config = load_config(overrides(command))
    assert config.output_dir.startswith("/shared/")


@pytest.mark.parametrize("page", ["README.md", "launch/README.md"])
def test_the_readmes_name_files_that_exist_and_the_ray_that_is_installed(page):
    text = (_ROOT / page).read_text()
    for path in re.findall(r"(?:launch|docker)/[\w./-]*\w", text):
        assert (_ROOT / path).exists(), path
    assert set(re.findall(r"[Rr]ay(?:\[default\]==| )(\d+\.\d+\.\d+)", text)) <= {_RAY}
