"""Downloads, against a real server on this machine that fails on purpose."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import loopback
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from loopback import Fault, commit_of
from processes import TIMEOUT_S

import dcdctl
from dcdctl.core.data import RemoteFile, fetch_file
from dcdctl.core.data.download import http
from dcdctl.core.data.download import hub as data_hub
from dcdctl.core.data.download.cache import cache_folder, expand
from dcdctl.core.errors import ConfigError, InputError, SourceError
from dcdctl.core.progress import Track

BODY = bytes(range(256)) * 1200
OTHER = BODY[::-1]
SHARDS = {
    "README.md": b"# birds\n",
    "data/train-00000.parquet": b"a" * 3000,
    "data/train-00001.parquet": b"b" * 900,
    "data/old/train-00000.parquet": b"c",
}
SHARD_0 = "hf://datasets/me/birds/data/train-00000.parquet"
BIRDS = RemoteFile(url=SHARD_0)


def sha256(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """A cache of its own, and no waiting between attempts."""
    monkeypatch.setenv("DCDCTL_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(http, "FIRST_WAIT_SECONDS", 0.0)
    return tmp_path / "cache"


@pytest.fixture
def server():
    with loopback.serve({"a.zip": BODY}, {"me/birds": SHARDS}, {"me/net": {"model.bin": b"w" * 2000}}) as server:
        yield server


@pytest.fixture
def a_zip(server):
    return RemoteFile(url=f"{server.url}/a.zip")


@pytest.fixture
def hub(server, tmp_path, monkeypatch):
    """The server as the Hub. The constants are read from the environment once a process: a test sets them."""
    from huggingface_hub import constants

    monkeypatch.setenv("HF_ENDPOINT", server.url)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)
    return server


def left(cache: Path) -> list[str]:
    """The file names in the cache, without the hashes of URLs and without locks."""
    return sorted(
        path.name.partition("-")[2] for path in (cache / "downloads").iterdir() if not path.name.startswith(".")
    )


def exactly(message: str) -> str:
    return f"^{re.escape(message)}$"


# Complete downloads


def test_a_file_is_downloaded_once_and_its_sha256_recorded(server, cache):
    file = RemoteFile(url=f"{server.url}/a.zip?download=1")
    first, again = fetch_file(file), fetch_file(file)
    assert first.path.read_bytes() == BODY
    assert first.path.name == f"{sha256(file.url.encode())[:16]}-a.zip"
    assert (first.check, again.check) == ("first download, sha256 recorded", "matches the first download")
    assert again.path == first.path
    assert len(server.requests) == 1
    record = json.loads((cache / "downloads" / f"{first.path.name}.sha256").read_text())
    assert (record["url"], record["size"], record["sha256"]) == (file.url, len(BODY), sha256(BODY))
    assert left(cache) == ["a.zip", "a.zip.sha256"]


def test_a_damaged_record_is_named(a_zip, cache):
    file = a_zip
    path = fetch_file(file).path
    path.with_name(f"{path.name}.sha256").write_text("{")
    with pytest.raises(InputError, match=r"a\.zip\.sha256 is not JSON: .*; delete it and run the same command again"):
        fetch_file(file)


@pytest.mark.parametrize("checksum", [f"sha256:{sha256(BODY).upper()}", f"md5:{hashlib.md5(BODY).hexdigest()}"])
def test_a_checksum_is_verified(server, checksum):
    file = RemoteFile(url=f"{server.url}/a.zip", size=len(BODY), checksum=checksum)
    assert [fetch_file(file).check for _ in range(2)] == ["checksum matches", "checksum matches"]
    assert len(server.requests) == 1


def test_a_redirect_is_followed_and_the_name_is_that_of_the_url(server):
    server.redirects["/v1/b.zip"] = "/a.zip"
    fetched = fetch_file(RemoteFile(url=f"{server.url}/v1/b.zip"))
    assert fetched.path.name.endswith("-b.zip")
    assert fetched.path.read_bytes() == BODY


def test_an_unchanged_file_is_not_read_again_and_a_touched_one_is(a_zip, monkeypatch):
    read = []
    monkeypatch.setattr(
        http, "digests_of", lambda path, kinds, real=http.digests_of: read.append(path) or real(path, kinds)
    )
    path = fetch_file(a_zip).path
    read.clear()
    fetch_file(a_zip)
    assert read == []
    os.utime(path, (1, 1))
    assert fetch_file(a_zip).check == "matches the first download"
    assert read == [path]


def counting(seen: list) -> Track:
    """A track that notes the bars it opens and what they are told."""

    @contextmanager
    def track(label, *, total, unit):
        seen.append((label, total, unit))
        yield seen.append

    return track


# A connection that breaks


def test_a_dropped_connection_is_resumed_and_only_the_rest_is_sent(server, a_zip, cache):
    server.faults["/a.zip"] = Fault(cut_after=100_000)
    seen: list = []
    fetched = fetch_file(a_zip, track=counting(seen))
    assert fetched.path.read_bytes() == BODY
    first, second = server.requests
    assert "range" not in first.headers
    assert second.headers["range"] == "bytes=100000-"
    assert second.headers["if-range"] == f'"{hashlib.md5(BODY).hexdigest()}"'
    assert (second.status, second.sent) == (206, len(BODY) - 100_000)
    bars = [one for one in seen if isinstance(one, tuple)]
    rest = len(BODY) - 100_000
    assert bars == [("download a.zip", len(BODY), "bytes"), ("download the rest of a.zip", rest, "bytes")]
    assert sum(one for one in seen if isinstance(one, int)) == len(BODY)
    assert left(cache) == ["a.zip", "a.zip.sha256"]


def test_a_file_that_changed_meanwhile_is_downloaded_from_the_start(server, a_zip):
    server.faults["/a.zip"] = Fault(cut_after=100_000)

    def track(label, *, total, unit):
        server.files["a.zip"] = OTHER  # the first answer is on its way
        return counting(seen)(label, total=total, unit=unit)

    seen: list = []
    fetched = fetch_file(a_zip, track=track)
    assert fetched.path.read_bytes() == OTHER
    assert [(request.status, request.sent) for request in server.requests] == [(200, 100_000), (200, len(OTHER))]
    first_of_last_bar = max(i for i, one in enumerate(seen) if isinstance(one, tuple)) + 1
    assert sum(seen[first_of_last_bar:]) == len(OTHER)


@pytest.mark.parametrize("checksum", ["", f"sha256:{sha256(BODY)}"])
def test_without_etag_or_date_a_download_starts_again(server, checksum):
    server.etags = False
    server.faults["/a.zip"] = Fault(cut_after=100_000)
    assert fetch_file(RemoteFile(url=f"{server.url}/a.zip", checksum=checksum)).path.read_bytes() == BODY
    assert [request.sent for request in server.requests] == [100_000, len(BODY)]


SCRIPT = """
import sys
import httpx2
from dcdctl.core.data.download.cache import RemoteFile, expand, fetch_file

print("ready", flush=True)
for file in expand(sys.argv[1]) if "*" in sys.argv[1] else [RemoteFile(url=sys.argv[1])]:
    fetched = fetch_file(file)
    print(fetched.check, fetched.path.stat().st_size, flush=True)
"""


def start(tmp_path: Path, url: str, **environment: str) -> subprocess.Popen[str]:
    """Another process that fetches."""
    (tmp_path / "script.py").write_text(SCRIPT)
    environment = os.environ | {"PYTHONPATH": str(Path(dcdctl.__file__).parent.parent)} | environment
    command = [sys.executable, str(tmp_path / "script.py"), url]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for(condition) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.002)
    assert condition()


def test_the_partial_file_of_a_killed_process_is_resumed(server, a_zip, cache, tmp_path):
    server.faults["/a.zip"] = Fault(cut_after=100_000, hold=threading.Event())
    with start(tmp_path, f"{server.url}/a.zip") as process:
        wait_for(lambda: any(path.stat().st_size for path in cache.glob("downloads/*a.zip.partial")))
        process.send_signal(signal.SIGKILL)
    came = next(cache.glob("downloads/*a.zip.partial")).stat().st_size
    seen: list = []
    fetched = fetch_file(a_zip, track=counting(seen))
    assert fetched.path.read_bytes() == BODY
    assert [request.headers.get("range") for request in server.requests] == [None, f"bytes={came}-"]
    assert server.requests[1].sent == len(BODY) - came
    assert seen[0] == ("download the rest of a.zip", len(BODY) - came, "bytes")


def test_a_complete_partial_file_is_not_requested_again(server, a_zip, cache):
    path = fetch_file(a_zip).path
    path.rename(f"{path}.partial")
    Path(f"{path}.partial.json").write_text(json.dumps({"validator": '"x"', "size": len(BODY)}))
    assert fetch_file(a_zip).check == "matches the first download"
    assert len(server.requests) == 1
    assert left(cache) == ["a.zip", "a.zip.sha256"]


def test_a_partial_file_longer_than_the_file_starts_again(server, a_zip, cache):
    path = fetch_file(a_zip).path
    path.unlink()
    Path(f"{path}.partial").write_bytes(BODY * 2)
    Path(f"{path}.partial.json").write_text(
        json.dumps({"validator": f'"{hashlib.md5(BODY).hexdigest()}"', "size": None})
    )
    assert fetch_file(a_zip).path.read_bytes() == BODY
    assert [request.status for request in server.requests] == [200, 416, 200]


def test_two_processes_at_once_download_once(server, tmp_path):
    release = threading.Event()
    server.faults["/a.zip"] = Fault(hold=release)
    with start(tmp_path, f"{server.url}/a.zip") as one, start(tmp_path, f"{server.url}/a.zip") as two:
        assert [process.stdout.readline() for process in (one, two)] == ["ready\n", "ready\n"]
        wait_for(lambda: server.requests)
        time.sleep(0.05)  # the other is at the lock, or would be at the server if there were none
        release.set()
        printed = sorted(process.stdout.read() for process in (one, two))
    assert printed == [f"first download, sha256 recorded {len(BODY)}\n", f"matches the first download {len(BODY)}\n"]
    assert len(server.requests) == 1


# A server that does not keep to the rules: the file is downloaded from the start, or the error says why


def leave_partial(server, a_zip, keep: int) -> None:
    """The partial file of an earlier run, with its notes."""
    path = fetch_file(a_zip).path
    path.with_name(f"{path.name}.sha256").unlink()
    path.rename(f"{path}.partial")
    os.truncate(f"{path}.partial", keep)
    notes = {"validator": f'"{hashlib.md5(BODY).hexdigest()}"', "size": len(BODY)}
    Path(f"{path}.partial.json").write_text(json.dumps(notes))
    server.requests.clear()


REST = len(BODY) - 100_000
RANGE_LIES = {
    "no ETag": {"ETag": "", "Last-Modified": ""},
    "a weak ETag": {"ETag": 'W/"x"'},
    "another total": {"Content-Range": f"bytes 100000-{len(BODY) - 1}/{len(BODY) + 7}"},
    "another start": {"Content-Range": f"bytes 0-{REST - 1}/{len(BODY)}"},
    "no range": {"Content-Range": ""},
    "a number of 5,000 digits": {"Content-Range": f"bytes {'1' * 5000}-2/3"},
}


@pytest.mark.parametrize("case", RANGE_LIES)
def test_a_rest_that_does_not_fit_the_partial_file_starts_again(server, a_zip, case):
    leave_partial(server, a_zip, 100_000)
    server.faults["/a.zip"] = Fault(headers=RANGE_LIES[case])
    assert fetch_file(a_zip).path.read_bytes() == BODY
    assert [request.headers.get("range") for request in server.requests] == ["bytes=100000-", None]


def test_a_part_of_the_file_that_nobody_asked_for_is_an_error(server, a_zip):
    server.faults["/a.zip"] = Fault(
        status=206, body=BODY[5:], headers={"Content-Range": f"bytes 5-{len(BODY) - 1}/{len(BODY)}"}, times=None
    )
    with pytest.raises(
        SourceError, match=r"gave up after 5 attempts \(it sent a part of the file that was not requested, or"
    ):
        fetch_file(a_zip)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    cut=st.integers(1, 1999),
    changes=st.booleans(),
    etags=st.booleans(),
    ranges=st.booleans(),
    if_range=st.booleans(),
    has_checksum=st.booleans(),
    length=st.integers(1500, 2500),
)
def test_a_download_is_one_version_of_the_file_and_never_a_mix(
    server, cache, cut, changes, etags, ranges, if_range, has_checksum, length
):
    shutil.rmtree(cache, ignore_errors=True)
    old, new = b"a" * 2000, b"b" * length if changes else b"a" * 2000
    server.files["a.zip"], server.etags, server.ranges, server.if_range = old, etags, ranges, if_range
    server.faults["/a.zip"] = Fault(cut_after=cut)

    def track(label, *, total, unit):
        server.files["a.zip"] = new
        return counting([])(label, total=total, unit=unit)

    checksum = f"sha256:{sha256(new)}" if has_checksum else ""
    try:
        fetched = fetch_file(RemoteFile(url=f"{server.url}/a.zip", checksum=checksum), track=track).path.read_bytes()
    except SourceError:
        assert has_checksum
        assert changes
    else:
        assert fetched == new


# A server that fails


@pytest.mark.parametrize(
    ("asked", "seconds"), [("7", 7.0), ("3600", 300.0), (loopback.LAST_MODIFIED, 1.0), ("soon", 1.0)]
)
def test_429_waits_as_long_as_the_server_asks_and_at_most_five_minutes(server, a_zip, monkeypatch, asked, seconds):
    waited = []
    monkeypatch.setattr(http, "FIRST_WAIT_SECONDS", 1.0)
    monkeypatch.setattr(http.time, "sleep", waited.append)
    server.faults["/a.zip"] = Fault(status=429, headers={"Retry-After": asked})
    assert fetch_file(a_zip).path.read_bytes() == BODY
    assert waited == [seconds]


def test_500_is_retried_with_longer_waits_and_then_fails(server, a_zip, monkeypatch):
    waited = []
    monkeypatch.setattr(http, "FIRST_WAIT_SECONDS", 1.0)
    monkeypatch.setattr(http.time, "sleep", waited.append)
    server.faults["/a.zip"] = Fault(status=500, times=None)
    with pytest.raises(SourceError) as caught:
        fetch_file(a_zip)
    assert str(caught.value) == (
        f"{server.url}/a.zip: gave up after 5 attempts (500 Internal Server Error); run the same command again later"
    )
    assert waited == [1.0, 2.0, 4.0, 8.0]
    server.faults["/a.zip"] = Fault(status=503, times=4)
    assert fetch_file(a_zip).path.read_bytes() == BODY


def test_a_download_that_is_always_cut_fails_and_is_kept_for_the_next_run(server, a_zip, cache):
    server.ranges = False
    server.faults["/a.zip"] = Fault(cut_after=100_000, times=None)
    with pytest.raises(
        SourceError, match=r"gave up after 5 attempts .*; 100,000 bytes are kept: run the same command again to resume$"
    ):
        fetch_file(a_zip)
    assert len(server.requests) == 5
    assert left(cache) == ["a.zip.partial", "a.zip.partial.json"]
    server.ranges, server.faults = True, {}
    assert fetch_file(a_zip).path.read_bytes() == BODY
    assert server.requests[-1].sent == len(BODY) - 100_000


def test_a_silent_server_times_out_and_is_requested_again(server, a_zip, monkeypatch):
    monkeypatch.setattr(http, "TIMEOUT_SECONDS", 0.1)
    server.faults["/a.zip"] = Fault(hold=threading.Event())
    assert fetch_file(a_zip).path.read_bytes() == BODY
    assert len(server.requests) == 2


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (403, f"was refused (403 Forbidden); {http.BY_HAND_HINT}"),
        (404, "does not exist (404 Not Found); it may have moved: find it and place it by hand"),
    ],
)
def test_a_refusal_is_not_retried(server, a_zip, status, words):
    server.faults["/a.zip"] = Fault(status=status)
    with pytest.raises(SourceError, match=exactly(f"{server.url}/a.zip {words}")):
        fetch_file(a_zip)
    assert len(server.requests) == 1


def test_a_web_page_in_place_of_the_file_is_an_error(server, a_zip, cache):
    server.faults["/a.zip"] = Fault(body=b"<html>log in</html>", headers={"Content-Type": "text/html; charset=utf-8"})
    with pytest.raises(SourceError, match=r"a.zip is a web page, expected a file; it may need a login"):
        fetch_file(a_zip)
    assert left(cache) == []


def test_a_server_that_is_down_fails_after_five_attempts(cache):
    with loopback.serve() as gone:
        url = f"{gone.url}/a.zip"
    with pytest.raises(
        SourceError, match=r"a.zip: gave up after 5 attempts \(.*refused.*\); run the same command again later$"
    ):
        fetch_file(RemoteFile(url=url))


def test_a_loop_of_redirects_is_an_error(server):
    server.redirects["/ring.zip"] = "/ring.zip"
    with pytest.raises(SourceError, match=r"ring.zip cannot be requested \(Exceeded maximum allowed redirects"):
        fetch_file(RemoteFile(url=f"{server.url}/ring.zip"))


# An unexpected file


@pytest.mark.parametrize(("kind", "found"), [("sha256", sha256(BODY)), ("md5", hashlib.md5(BODY).hexdigest())])
def test_a_wrong_checksum_is_an_error_with_both_and_the_file_is_not_kept(server, cache, kind, found):
    expected = found[::-1]
    with pytest.raises(
        SourceError, match=exactly(f"{server.url}/a.zip has {kind} {found}, expected {expected}; the file was not kept")
    ):
        fetch_file(RemoteFile(url=f"{server.url}/a.zip", checksum=f"{kind}:{expected}"))
    assert left(cache) == []


def test_a_wrong_size_is_an_error_before_the_download(server, cache):
    with pytest.raises(SourceError, match=exactly(f"{server.url}/a.zip has 307,200 bytes, expected 307,199")):
        fetch_file(RemoteFile(url=f"{server.url}/a.zip", size=len(BODY) - 1))
    assert left(cache) == []


def test_a_body_shorter_than_its_length_is_a_cut(server, a_zip):
    server.faults["/a.zip"] = Fault(headers={"Content-Length": str(len(BODY) + 5)}, times=1)
    assert fetch_file(a_zip).path.read_bytes() == BODY
    assert server.requests[1].headers["range"] == f"bytes={len(BODY)}-"


def test_a_new_download_is_compared_with_the_record(server, a_zip, cache):
    path = fetch_file(a_zip).path
    path.unlink()
    server.files["a.zip"] = OTHER
    with pytest.raises(SourceError) as caught:
        fetch_file(a_zip)
    assert str(caught.value) == (
        f"{server.url}/a.zip has sha256 {sha256(OTHER)}, but had {sha256(BODY)} at the first download; "
        f"if the new file is right, delete {path}.sha256 and run the same command again"
    )
    assert left(cache) == ["a.zip.sha256"]
    with_checksum = RemoteFile(url=f"{server.url}/a.zip", checksum=f"sha256:{sha256(OTHER)}")
    assert fetch_file(with_checksum).check == "checksum matches"  # a checksum takes precedence over the record
    assert fetch_file(a_zip).check == "matches the first download"


@pytest.mark.parametrize("known", [{}, {"checksum": f"sha256:{sha256(BODY)}"}, {"size": len(BODY)}])
def test_a_file_that_was_damaged_in_the_cache_is_downloaded_again(server, known):
    file = RemoteFile(url=f"{server.url}/a.zip", **known)
    path = fetch_file(file).path
    path.write_bytes(BODY[:-1])
    with pytest.raises(SourceError, match=r"a.zip has "):
        fetch_file(file, offline=True)
    assert fetch_file(file).path.read_bytes() == BODY


# No network, no room on the disk


@pytest.mark.parametrize("url", ["{}/a.zip", SHARD_0])
def test_offline_makes_no_request(hub, url):
    url = url.format(hub.url)
    hint = "run once without it, or place the file by hand"
    with pytest.raises(SourceError, match=exactly(f"{url} is not in the cache and --offline is set; {hint}")):
        fetch_file(RemoteFile(url=url), offline=True)
    assert hub.requests == []
    path = fetch_file(RemoteFile(url=url)).path
    asked = len(hub.requests)
    assert fetch_file(RemoteFile(url=url), offline=True).path == path
    assert len(hub.requests) == asked


def test_hf_hub_offline_counts_for_all_urls(hub, a_zip, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(SourceError, match="is not in the cache and HF_HUB_OFFLINE is set"):
        fetch_file(a_zip)
    assert hub.requests == []


@contextmanager
def filling_up(label, *, total, unit):
    """A bar at whose first step the disk is full."""

    def advance(count):
        raise OSError(errno.ENOSPC, "No space left on device")

    yield advance


def test_a_full_disk_is_an_error_and_the_partial_file_is_kept(hub, cache, tmp_path):
    file = RemoteFile(url=f"{hub.url}/a.zip")
    for full in (file, BIRDS):
        with pytest.raises(InputError, match=f"there is no room left for {cache / 'downloads'}; make room"):
            fetch_file(full, track=filling_up)
    assert fetch_file(file).path.read_bytes() == BODY
    assert hub.requests[-1].headers["range"].startswith("bytes=")


def test_a_cache_that_cannot_be_written_is_an_error(a_zip, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("DCDCTL_CACHE", str(tmp_path / "file"))
    with pytest.raises(InputError, match=r"the cache cannot be written \(.*\); set DCDCTL_CACHE"):
        fetch_file(a_zip)


def test_the_cache_is_where_the_environment_says(monkeypatch, tmp_path):
    monkeypatch.setenv("DCDCTL_CACHE", "~/here")
    assert cache_folder() == Path.home() / "here"
    monkeypatch.delenv("DCDCTL_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "dcdctl"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path.home() / ".cache" / "dcdctl"


# The Hub


def test_hub_files_are_checked_by_the_hash_of_the_hub(hub, cache):
    for name in (
        "data/train-00000.parquet",
        "data/train-00001.parquet",
    ):  # a large one, named by sha256, and a small one, as git does
        fetched = fetch_file(RemoteFile(url=f"hf://datasets/me/birds/{name}"))
        assert (fetched.path.read_bytes(), fetched.check) == (SHARDS[name], "matches the Hub's hash")
    revision = commit_of(SHARDS)
    assert fetch_file(RemoteFile(url=f"hf://datasets/me/birds@{revision}/README.md")).path.read_bytes() == b"# birds\n"
    assert fetch_file(RemoteFile(url="hf://me/net/model.bin")).path.read_bytes() == b"w" * 2000
    assert left(cache)[0] == "README.md.sha256"


def test_a_hub_file_with_another_content_than_its_name_is_removed(hub):
    name = sha256(b"a" * 3000)
    hub.faults[f"/cdn/{name}"] = Fault(body=b"A" * 3000)
    with pytest.raises(SourceError) as caught:
        fetch_file(BIRDS)
    assert str(caught.value) == (
        f"{SHARD_0} has sha256 {sha256(b'A' * 3000)}, expected {name} from the Hub; it was removed: run the same "
        "command again"
    )
    assert fetch_file(BIRDS).path.read_bytes() == b"a" * 3000


def test_a_checksum_takes_precedence_over_the_hash_of_the_hub(hub):
    right = RemoteFile(url=SHARD_0, checksum=f"sha256:{sha256(b'a' * 3000)}")
    assert fetch_file(right).check == "checksum matches"
    with pytest.raises(SourceError, match=rf"train-00000.parquet has md5 [0-9a-f]+, expected {'0' * 32}"):
        fetch_file(RemoteFile(url=SHARD_0, checksum=f"md5:{'0' * 32}"))
    with pytest.raises(SourceError, match=r"train-00000.parquet has 3,000 bytes, expected 5"):
        fetch_file(RemoteFile(url=SHARD_0, size=5))


def test_a_branch_that_moved_on_is_downloaded_again_without_an_error(hub):
    fetch_file(BIRDS)
    hub.repos["datasets"]["me/birds"] = SHARDS | {"data/train-00000.parquet": b"n" * 4000}
    fetched = fetch_file(BIRDS)
    assert (fetched.path.read_bytes(), fetched.check) == (b"n" * 4000, "matches the Hub's hash")


def test_a_gated_repository_says_where_its_terms_are_and_opens_with_a_token(hub, monkeypatch):
    hub.gated["me/birds"] = "hf_right"
    accept = f"accept the terms at {hub.url}/datasets/me/birds and set HF_TOKEN to a token of that account"
    with pytest.raises(SourceError, match=exactly(f"{SHARD_0} is gated (401); {accept}")):
        fetch_file(BIRDS)
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    with pytest.raises(SourceError, match=exactly(f"{SHARD_0} is gated (403); {accept}")):
        fetch_file(BIRDS)
    monkeypatch.setenv("HF_TOKEN", "hf_right")
    assert fetch_file(BIRDS).path.read_bytes() == b"a" * 3000
    assert "authorization" not in hub.gets(f"/cdn/{sha256(b'a' * 3000)}")[0].headers  # the token stays with the Hub


@pytest.mark.parametrize(
    ("url", "words"),
    [
        (
            "hf://datasets/me/cats/a.csv",
            "{}/datasets/me/cats does not exist or is private (401); check the name; for a private one set HF_TOKEN",
        ),
        (
            "hf://me/birds/a.csv",
            "{}/me/birds does not exist or is private (401); check the name; for a private one set HF_TOKEN",
        ),
        (
            "hf://datasets/me/birds@v9/README.md",
            "{0}/datasets/me/birds has no such revision (404); see {0}/datasets/me/birds/tree/main",
        ),
        ("hf://datasets/me/birds/a.csv", "there is no such file (404); see {}/datasets/me/birds/tree/main"),
    ],
)
def test_missing_repositories_revisions_and_files_of_the_hub(hub, url, words):
    with pytest.raises(
        SourceError,
        match=exactly(f"{url}: {words.format(hub.url)}"),
    ):
        fetch_file(RemoteFile(url=url))


def test_a_hub_that_fails_and_a_hub_that_is_down(hub, monkeypatch):
    path = "/datasets/me/birds/resolve/main/data/train-00000.parquet"
    hub.faults[path] = Fault(status=500, times=None)
    with pytest.raises(
        SourceError, match=exactly(f"{SHARD_0}: the Hub answered 500; run the same command again later")
    ):
        fetch_file(BIRDS)
    hub.faults[path] = Fault(status=403, times=None)
    with pytest.raises(
        SourceError, match=r"train-00000.parquet was refused \(403\); set HF_TOKEN to a token that may read "
    ):
        fetch_file(BIRDS)
    with loopback.serve() as gone:
        monkeypatch.setenv("HF_ENDPOINT", gone.url)
    with pytest.raises(SourceError) as caught:
        fetch_file(BIRDS)
    assert re.fullmatch(
        rf"{SHARD_0} is not available from {gone.url} \(.*refused\); run the same command again, or .*",
        str(caught.value),
    )


def test_a_cut_hub_download_is_resumed(hub):
    body = bytes(11 << 20)  # huggingface_hub writes ten megabytes at a time
    hub.repos["datasets"]["me/birds"] = {"big.bin": body}
    hub.faults[f"/cdn/{sha256(body)}"] = Fault(cut_after=len(body) - 5)
    seen: list = []
    assert fetch_file(
        RemoteFile(url="hf://datasets/me/birds/big.bin"), track=counting(seen)
    ).path.stat().st_size == len(body)
    assert [request.headers.get("range") for request in hub.gets(f"/cdn/{sha256(body)}")] == [
        None,
        f"bytes={10 << 20}-",
    ]
    assert (seen[0], sum(seen[1:])) == (("download big.bin", len(body), "bytes"), len(body))


def test_the_environment_of_the_hub_is_read_and_stderr_stays_clean(server, tmp_path):
    server.gated["me/birds"] = "hf_right"
    names = {"HF_HOME": str(tmp_path / "home"), "HF_ENDPOINT": server.url, "HF_TOKEN": "hf_right"}
    said, talk = start(tmp_path, "hf://datasets/me/birds/data/*.parquet", **names).communicate(timeout=TIMEOUT_S)
    assert (said, talk) == ("ready\nmatches the Hub's hash 3000\nmatches the Hub's hash 900\n", "")
    assert [path.name for path in tmp_path.glob("home/hub/*/blobs/*") if path.name == sha256(b"a" * 3000)]
    asked = len(server.requests)
    names["HF_HUB_OFFLINE"] = "1"
    said, talk = start(tmp_path, "hf://datasets/me/birds/data/*.parquet", **names).communicate(timeout=TIMEOUT_S)
    assert (said, talk) == ("ready\nmatches the Hub's hash 3000\nmatches the Hub's hash 900\n", "")
    assert len(server.requests) == asked


# Patterns


def test_a_pattern_gives_the_files_of_one_folder_in_order(hub):
    files = expand("hf://datasets/me/birds@main/data/*-*.parquet")
    assert [(file.url, file.size, file.name) for file in files] == [
        ("hf://datasets/me/birds@main/data/train-00000.parquet", 3000, "train-00000.parquet"),
        ("hf://datasets/me/birds@main/data/train-00001.parquet", 900, "train-00001.parquet"),
    ]
    assert [file.url for file in expand("hf://datasets/me/birds/*/*/*")] == [
        "hf://datasets/me/birds/data/old/train-00000.parquet"
    ]


def test_a_pattern_that_matches_nothing_and_one_of_a_plain_url(hub):
    with pytest.raises(
        SourceError, match=r"birds/\*.tar matches none of the 4 files there; see http.*/datasets/me/birds/tree/main$"
    ):
        expand("hf://datasets/me/birds/*.tar")
    with pytest.raises(ConfigError, match=exactly("https://host/*.tar cannot be listed: only hf:// URLs may have *")):
        expand("https://host/*.tar")
    with pytest.raises(
        SourceError, match=r"hf://datasets/me/cats/\*: .*/datasets/me/cats does not exist or is private"
    ):
        expand("hf://datasets/me/cats/*")


def test_offline_a_pattern_uses_the_cached_list(hub):
    pattern = "hf://datasets/me/birds/data/*.parquet"
    with pytest.raises(
        SourceError, match="the list of files of hf://datasets/me/birds/ is not in the cache and --offline is set"
    ):
        expand(pattern, offline=True)
    assert expand(pattern) == expand(pattern, offline=True)
    assert len(hub.requests) == 1


@pytest.mark.parametrize(
    ("url", "name", "revision"),
    [
        ("hf://datasets/me/birds@refs/convert/parquet/default/train/0.parquet", "0.parquet", "refs/convert/parquet"),
        ("hf://datasets/me/birds@refs%2Fpr%2F1/a.csv", "a.csv", "refs/pr/1"),
        ("hf://me/net@v1.0/a b.bin", "a b.bin", "v1.0"),
    ],
)
def test_revisions_of_the_hub(url, name, revision):
    assert (RemoteFile(url=url).name, data_hub.HubPath.parse(url).revision) == (name, revision)


def test_a_name_is_the_last_part_of_the_path():
    assert RemoteFile(url="https://host/x/a%20b.zip?token=1#top").name == "a b.zip"
