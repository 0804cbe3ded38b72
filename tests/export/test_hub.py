"""Pushing an export, against a local server in place of the Hub."""

from __future__ import annotations

import loopback_uploads
import pytest
from tiny import contents

from dcdctl.core.errors import ConfigError, SourceError
from dcdctl.core.export import ExportJob
from dcdctl.core.export import push as export_push
from dcdctl.core.export.export import resolve

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
    page = export_push.push_folder(folder, "me/dual")
    assert page == f"{hub.url}/me/dual/commit/{40 * 'b'}"
    assert hub.repos["me/dual"].files == contents(folder)


@pytest.mark.parametrize("options", [{"private": False}, {"private": True}, {}], ids=str)
def test_a_new_repository_is_private_unless_it_shall_be_public(hub, folder, options):
    export_push.push_folder(folder, "me/dual", **options)
    assert hub.repos["me/dual"].private == options.get("private", True)


@pytest.mark.parametrize("private", [True, False])
def test_an_existing_repository_is_updated(hub, folder, private):
    hub.repos["me/dual"] = loopback_uploads.Repository(files={"notes.md": b"mine"}, private=private)
    export_push.push_folder(folder, "me/dual", private=private)
    assert hub.repos["me/dual"].files == {"notes.md": b"mine", **contents(folder)}
    assert hub.repos["me/dual"].private == private


@pytest.mark.parametrize(
    ("private", "message"),
    [
        (
            True,
            r"me/dual is there and is public, and the export would be private; add --public, or change it .*`hf upl",
        ),
        (False, r"me/dual is there and is private, and the export would be public; add --private, or change it"),
    ],
)
def test_nothing_is_pushed_to_a_repository_that_others_see_or_do_not_see(hub, folder, private, message):
    hub.repos["me/dual"] = loopback_uploads.Repository(files={"notes.md": b"mine"}, private=not private)
    with pytest.raises(ConfigError, match=message):
        export_push.push_folder(folder, "me/dual", private=private)
    assert hub.repos["me/dual"].files == {"notes.md": b"mine"}


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
        export_push.push_folder(folder, "me/dual")
    assert contents(folder) == before


def test_an_unreachable_hub_is_an_error(folder, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_me")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(SourceError, match=r"me/dual was not pushed: .*onnect"):
        export_push.push_folder(folder, "me/dual")


def test_a_private_export_needs_no_repository(tmp_path):
    resolve(ExportJob(model="scenes-vilt", out=tmp_path / "out", to="transformers", private=True))
