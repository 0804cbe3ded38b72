"""Pushing an export, against a local server in place of the Hub."""

from __future__ import annotations

import loopback_uploads
import pytest
from tiny import contents

from dcdctl.core.errors import ConfigError, MissingError, SourceError
from dcdctl.core.export import hub as export_hub

# huggingface_hub sends large files in a way that its HTTP client warns about.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=<...>':DeprecationWarning")


@pytest.fixture
def hub(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_me")
    with loopback_uploads.serve({"hf_me"}) as found:
        monkeypatch.setenv("HF_ENDPOINT", found.url)
        yield found


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "out" / "int8").mkdir(parents=True)
    (tmp_path / "out" / "README.md").write_text("---\nlicense: mit\n---\n\n# dual\n")
    (tmp_path / "out" / "int8" / "text.onnx").write_bytes(bytes(range(256)) * 9)
    return tmp_path / "out"


def test_every_file_is_pushed_to_a_new_repository(hub, folder):
    page = export_hub.push_folder(folder, "me/dual")
    assert page == f"{hub.url}/me/dual/commit/{40 * 'b'}"
    assert hub.repos["me/dual"].files == contents(folder)


def test_an_existing_repository_is_updated(hub, folder):
    hub.repos["me/dual"] = loopback_uploads.Repository(files={"notes.md": b"mine"})
    export_hub.push_folder(folder, "me/dual")
    assert hub.repos["me/dual"].files == {"notes.md": b"mine", **contents(folder)}


@pytest.mark.parametrize(
    ("tokens", "refused", "message"),
    [
        ({"hf_you"}, "", r"refuses to write to me/dual \(403\); set HF_TOKEN to a token that may; the export is in "
                         r".*out: `hf upload me"),
        ({"hf_me"}, "/commit/main", r"me/dual was not pushed: the Hub answers 500; the export is in .*: `hf upload "
                                    r"me/dual .*out \.`"),
    ],
)  # fmt: skip
def test_a_failed_push_gives_the_reason_and_keeps_the_folder(hub, folder, tokens, refused, message):
    hub.tokens, hub.refused, before = tokens, refused, contents(folder)
    with pytest.raises(SourceError, match=message):
        export_hub.push_folder(folder, "me/dual")
    assert contents(folder) == before


def test_an_unreachable_hub_is_an_error(folder, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_me")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(SourceError, match=r"me/dual was not pushed: .*onnect"):
        export_hub.push_folder(folder, "me/dual")


def test_without_a_token_or_a_valid_name_nothing_is_computed(monkeypatch):
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    with pytest.raises(
        MissingError, match="pushing to me/dual needs a token for the Hub, and there is none; `hf auth login`, or"
    ):
        export_hub.check("me/dual")
    for name in ("dual", "me/du al", "me/dual/three"):
        with pytest.raises(ConfigError, match=r"--push-to-hub .*; use OWNER/NAME"):
            export_hub.check(name)
