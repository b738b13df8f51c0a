"""The model card, and the upload of an export to a stand-in of the hub's HTTP API."""

import base64
import json
import shlex
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from huggingface_hub import ModelCard, constants

from tests.unit.conftest import composed
from visurf_ray.config.schema import to_dict
from visurf_ray.errors import UserError
from visurf_ray.hub import check_upload, upload
from visurf_ray.monitor import write_card

SUMMARY = {
    "before": {"n_acc": 0.0, "ciou": 0.25},
    "after": {"n_acc": 0.96, "n_acc_low": 0.93, "n_acc_high": 0.98, "ciou": 0.5, "pass@4": 1.0},
    "steps": 80,
    "versions": {"torch": "2.13.0"},
}
OVERRIDES = ["method=visurf", "task.train='/data/a (1).jsonl'"]


def card(tmp_path: Path, *overrides: str) -> ModelCard:
    write_card(tmp_path, config=to_dict(composed(*overrides)), summary=SUMMARY, overrides=OVERRIDES)
    return ModelCard.load(tmp_path / "README.md")


def test_the_card_tells_data_method_model_settings_scores_and_command(tmp_path):
    found = card(tmp_path, "learner.learning_rate=1.5e-4", "task.train=300")
    text = found.text
    assert found.data.library_name == "transformers" and found.data.pipeline_tag == "image-text-to-text"
    assert found.data.tags == ["visurf"]
    assert found.data.base_model is None and found.data.datasets is None
    assert "# visurf on miniature" in text and "`miniature` after 80 steps" in text and "- training: `300`" in text
    assert "| `n_acc` | 0.000 | 0.960 | 0.930 – 0.980 |" in text
    assert "| `ciou` | 0.250 | 0.500 |  |" in text and "| `pass@4` |  | 1.000 |  |" in text
    assert "learning_rate: 0.00015" in text and "smooth: true" in text and "n_acc_low" not in text
    (command,) = [line for line in text.splitlines() if line.startswith("python -m")]
    assert shlex.split(command)[3:] == OVERRIDES


def test_the_card_of_a_mixture_tells_its_parts(tmp_path):
    charts = ["task=vqa", "train=[me/charts/human:train,me/both]", "held_out=c.jsonl", "weight=2"]
    sums = ["task=math", "train=me/both:train", "held_out=d.jsonl", "reward.options.boxed_credit=0"]
    parts = {"charts": charts, "sums": sums}
    found = card(tmp_path, "task=mixture", *[f"+task.parts.{name}.{each}" for name in parts for each in parts[name]])
    assert found.data.datasets == ["me/charts", "me/both"] and "# visurf on mixture" in found.text
    for told in ("Part `charts`, weight 2:\n\n- task: `vqa`", "Part `sums`, weight 1:\n\n- task: `math`"):
        assert told in found.text
    assert "- held out: `c.jsonl`" in found.text and "boxed_credit: 0" in found.text


def test_the_card_names_models_and_data_of_the_hub_alone(tmp_path):
    names = ["task=non_object", "task.held_out=b.jsonl", "model=qwen2_5_vl_7b"]
    found = card(tmp_path, *names, "model.path=Qwen/Qwen2.5-VL-7B-Instruct", "task.train=[me/data:train,/data/a.jsonl]")
    assert found.data.base_model == "Qwen/Qwen2.5-VL-7B-Instruct" and found.data.datasets == ["me/data"]
    assert "`me/data:train`, `/data/a.jsonl`" in found.text
    found = card(tmp_path, *names, f"model.path={tmp_path}", "task.train=/data/a.jsonl")
    assert found.data.base_model is None and found.data.datasets is None


class Hub:
    """Answers as the hub does to an upload of small files, and records each request."""

    def __init__(self, status: int = 200) -> None:
        self.requests: list[tuple[str, str | None, str]] = []  # path, authorization, body
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0))).decode()
                hub.requests.append((self.path, self.headers.get("Authorization"), body))
                self.reply(hub.answer(self.path, body))

            def do_GET(self) -> None:
                hub.requests.append((self.path, self.headers.get("Authorization"), ""))
                self.reply({"id": "me/mine", "sha": "0" * 40, "siblings": []})

            def reply(self, content: dict) -> None:
                text = json.dumps(content).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text)

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def answer(self, path: str, body: str) -> dict:
        if path.endswith("/api/repos/create"):
            return {"url": f"{self.address}/me/mine"}
        if "/preupload/" in path:
            files = json.loads(body)["files"]
            return {
                "files": [
                    {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False, "oid": None} for f in files
                ]
            }
        return {"success": True, "commitOid": "1" * 40, "commitUrl": f"{self.address}/me/mine/commit/{'1' * 40}"}

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", "hf_of_the_test")
    hub = Hub()
    yield hub
    hub.close()


def export(folder: Path) -> Path:
    (folder / "adapter").mkdir(parents=True)
    (folder / "README.md").write_text("# a model\n")
    (folder / "config.json").write_text("{}")
    (folder / "adapter" / "adapter_config.json").write_text('{"r": 4}')
    return folder


def test_an_export_is_uploaded_to_a_private_repository(hub, tmp_path):
    address = upload(export(tmp_path / "export"), "me/mine", hub.address)
    assert address.endswith("/me/mine/commit/" + "1" * 40)
    assert {token for _, token, _ in hub.requests} == {"Bearer hf_of_the_test"}
    created = json.loads(next(body for path, _, body in hub.requests if path == "/api/repos/create"))
    assert (created["organization"], created["name"]) == ("me", "mine")
    assert created["visibility"] == "private"
    commit = next(body for path, _, body in hub.requests if path.startswith("/api/models/me/mine/commit/main"))
    lines = [json.loads(line) for line in commit.splitlines()]
    files = {line["value"]["path"]: line["value"]["content"] for line in lines if line["key"] == "file"}
    assert {path: base64.b64decode(content).decode() for path, content in files.items()} == {
        "README.md": "# a model\n",
        "config.json": "{}",
        "adapter/adapter_config.json": '{"r": 4}',
    }


def test_a_hub_that_refuses_is_told_with_the_command_that_uploads_later(monkeypatch, tmp_path):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", "hf_of_the_test")
    hub, folder = Hub(status=403), export(tmp_path / "export")
    with pytest.raises(
        UserError, match=r"train\.push_to_hub=me/mine: .*403.* `hf upload me/mine .*export --private`"
    ) as error:
        upload(folder, "me/mine", hub.address)
    hub.close()
    assert "hf_of_the_test" not in str(error.value)


def test_an_upload_without_a_token_is_refused_before_the_run(monkeypatch, tmp_path):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(UserError, match=r"train\.push_to_hub=me/mine: there is no token .* set HF_TOKEN"):
        check_upload("me/mine")
    monkeypatch.setenv("HF_TOKEN", "hf_of_the_test")
    check_upload("me/mine")
    check_upload(None)


@pytest.mark.parametrize("name", ["mine", "a/b/c", "me/mi ne", "me/..mine", "/tmp/x"])
def test_what_is_no_name_of_a_repository_is_refused(monkeypatch, name):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", "hf_of_the_test")
    with pytest.raises(UserError, match=r"train\.push_to_hub=.*owner/name"):
        check_upload(name)


def test_an_upload_is_refused_offline(monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_TOKEN", "hf_of_the_test")
    with pytest.raises(UserError, match="HF_HUB_OFFLINE"):
        check_upload("me/mine")


def test_a_run_checks_the_upload_first(monkeypatch):
    from visurf_ray.checks import check

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=r"train\.push_to_hub=me/mine: HF_HUB_OFFLINE"):
        check(composed("train.push_to_hub=me/mine", "monitor.wandb=offline"))
