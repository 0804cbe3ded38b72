"""Files of an object store: read at one version, written atomically, and clear errors within few attempts."""

from __future__ import annotations

from pathlib import Path

import fsspec
import object_store
import pytest

from dcdctl.core.data import file_systems, urls
from dcdctl.core.errors import ConfigError, DcdError, InputError, SourceError, StaleError

DATA = bytes(range(256)) * 64


def read(url):
    """In four requests."""
    with urls.open_file(url) as file:
        return b"".join(iter(lambda: file.read(4096), b""))


def test_a_file_is_read_by_ranges(bucket):
    bucket.put("a.tar", DATA)
    assert read(bucket.url("a.tar")) == DATA
    assert urls.size_and_version(bucket.url("a.tar"))[0] == len(DATA)


FAULTS = [
    {"cut_after": 0},
    {"cut_after": 2000},
    {"cut_after": 4095},
    {"drop_after": 0},
    {"status": 503, "code": "SlowDown"},
    {"status": 500, "code": "InternalError"},
    {"status": 429, "code": "TooManyRequests"},
    {"status": 400, "code": "RequestTimeout"},
]


# An answer to HEAD has no body, and so no code.
@pytest.mark.parametrize(
    ("method", "fault"),
    [("GET", fault) for fault in FAULTS] + [("HEAD", fault) for fault in FAULTS[4:-1]],
    ids=str,
)
def test_a_failure_that_passes_is_repeated_and_one_that_stays_is_an_error(bucket, method, fault):
    bucket.put("a.tar", DATA)
    bucket.fail(method=method, key="a.tar", times=2, passes=1, **fault)
    assert read(bucket.url("a.tar")) == DATA
    bucket.requests.clear()
    bucket.fail(method=method, key="a.tar", times=None, **fault)
    with pytest.raises(DcdError) as failed:
        read(bucket.url("a.tar"))
    assert isinstance(failed.value, SourceError)
    assert "gave up after 5 attempts" in str(failed.value)
    assert_no_key(failed.value)
    # aiohttp repeats one whose connection was kept from an earlier request.
    assert len([request for request in bucket.requests if request.startswith(method)]) in (5, 10)


def assert_no_key(error):
    assert object_store.ACCESS_KEY not in str(error)
    assert object_store.SECRET_KEY not in str(error)


@pytest.fixture
def user(monkeypatch, bucket):
    """Sets the environment of another user, for the next request."""

    def set_all(**settings):
        for name, value in settings.items():
            monkeypatch.setenv(name, value) if value else monkeypatch.delenv(name)
        object_store.forget()

    yield set_all
    object_store.forget()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": ""},
            r"cannot be requested \(NoCredentialsError\); set AWS_ACCESS_KEY_ID and",
        ),
        ({"AWS_SECRET_ACCESS_KEY": ""}, r"cannot be requested \(PartialCredentialsError\); set both"),
        ({"AWS_ACCESS_KEY_ID": "AKIAOTHER"}, r"was refused.*; check the credentials"),
        # An answer to HEAD has no code.
        (
            {"AWS_DEFAULT_REGION": "us-east-1"},
            r"is in another region \(Auth.*set AWS_DEFAULT_REGION to the region of|\(400\); check the .* region",
        ),
        ({"AWS_PROFILE": "nobody"}, r"cannot be requested \(ProfileNotFound\); set AWS_PROFILE"),
        ({"AWS_ENDPOINT_URL": "nowhere"}, "the endpoint of its protocol is no URL; correct AWS_ENDPOINT_URL"),
        ({"AWS_ENDPOINT_URL": "http://127.0.0.1:9"}, r"gave up after 5 attempts \(EndpointConnectionError\)"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_wrong_settings_are_one_line_for_every_kind_of_request(bucket, user, tmp_path, settings, message):
    bucket.put("a.tar", DATA)
    (tmp_path / "b.tar").write_bytes(DATA)
    user(**settings)
    bucket.names_region = False
    url = bucket.url("a.tar")
    for request in (
        lambda: urls.open_file(url),
        lambda: urls.expand(bucket.url("*.tar")),
        lambda: urls.list_files(bucket.url()),
        lambda: urls.check_writable(bucket.url("folder")),
        lambda: urls.write_file(bucket.url("b.tar"), tmp_path / "b.tar"),
    ):
        with pytest.raises((SourceError, ConfigError), match=message) as failed:
            request()
        assert_no_key(failed.value)


def test_a_region_that_the_store_names_is_used(bucket, user):
    bucket.put("a.tar", DATA)
    user(AWS_DEFAULT_REGION="us-east-1")
    assert read(bucket.url("a.tar")) == DATA
    bucket.fail(key="a.tar", times=None, status=301, code="PermanentRedirect", headers={"x-amz-bucket-region": "x-1"})
    with pytest.raises(SourceError, match=r"is in another region \(301\); set AWS_DEFAULT_REGION to x-1"):
        read(bucket.url("a.tar"))
    # To a region that is not named: each answer to the question for it is another redirect.
    bucket.faults.clear()
    bucket.fail(times=None, status=301, code="PermanentRedirect")
    with pytest.raises(SourceError, match=r"is redirected without end; check the region and the endpoint"):
        read(bucket.url("a.tar"))


def test_what_is_not_there_is_named(bucket, tmp_path):
    (tmp_path / "a").write_bytes(b"1")
    for request, message in (
        (lambda: urls.open_file(bucket.url("a.tar")), "/a.tar does not exist; check the URL"),
        (lambda: urls.open_file("s3://nobody-has-this/a.tar"), r"NoSuchBucket\); check the name of the bucket"),
        (lambda: urls.write_file("s3://nobody-has-this/a", tmp_path / "a"), "NoSuchBucket"),
        (lambda: urls.check_writable("s3://nobody-has-this/a"), "s3://nobody-has-this/a does not exist.*NoSuchBucket"),
        (lambda: urls.list_files("s3://nobody-has-this/a"), "holds no file"),
        (lambda: urls.open_file("s3://No_Bucket!/a"), "check the name of the bucket"),
        (lambda: urls.write_file("https://host/a", tmp_path / "a"), "https:// is read only here"),
    ):
        with pytest.raises(DcdError, match=message):
            request()


def test_an_object_that_is_replaced_while_it_is_read_is_an_error(bucket):
    bucket.put("a.tar", DATA)
    for passes in range(4):
        bucket.put("a.tar", DATA)
        bucket.fail(method="GET", key="a.tar", passes=passes, first=lambda: bucket.put("a.tar", DATA[::-1]))
        with pytest.raises(StaleError, match=r"a\.tar has changed while it was read"):
            read(bucket.url("a.tar"))
        bucket.put("a.tar", DATA)
        bucket.fail(method="GET", key="a.tar", passes=3, then=lambda: bucket.put("a.tar", DATA[::-1]))
        # The answer was made of the old one, which is then read to its end.
        assert read(bucket.url("a.tar")) == DATA


def test_a_file_of_a_protocol_without_conditions_is_compared_after_reading(monkeypatch):
    memory = fsspec.filesystem("memory")
    memory.pipe("/kept/a.tar", DATA)
    read_range = type(memory).cat_file

    def replaced(self, *arguments, **options):
        data = read_range(self, *arguments, **options)
        memory.pipe("/kept/a.tar", DATA[::-1])
        return data

    monkeypatch.setattr(type(memory), "cat_file", replaced)
    with pytest.raises(StaleError, match="has changed while it was read"):
        read("memory://kept/a.tar")


def test_files_are_listed_below_a_folder_and_by_patterns(bucket, tmp_path):
    for key in ("a/0.csv", "a/b/1.csv", "a/b/2.txt", "a/_done", "a/.x/3.csv", "a/_temporary/0.csv", "ab.csv", "a/"):
        bucket.put(key, b"1")
    listed = urls.list_files(bucket.url("a"), (".csv",))
    assert listed == [bucket.url("a/0.csv"), bucket.url("a/b/1.csv")] == urls.list_files(bucket.url("a/"), (".csv",))
    assert urls.list_files(bucket.url("a")) == [*listed, bucket.url("a/b/2.txt")]
    assert urls.list_files(bucket.url("a/*.csv"), (".csv",)) == [bucket.url("a/0.csv")]
    assert urls.list_files(bucket.url("a/{0,b/1}.csv"), (".csv",)) == listed
    assert urls.list_files(bucket.url("ab.csv"), (".csv",)) == [bucket.url("ab.csv")]
    for place in ("a/b/2.txt", "a/b/*", "c", "c/*.csv", "a/b/2.tx"):
        with pytest.raises(InputError):
            urls.list_files(bucket.url(place), (".csv",))
    (tmp_path / "a.csv").write_bytes(b"1")
    assert urls.list_files(tmp_path, (".csv",)) == [str(tmp_path / "a.csv")]
    found = urls.find_named([str(tmp_path), bucket.url("a")], (".csv",), what="table", option="--rows")
    assert found == [tmp_path / "a.csv", *map(Path, listed)]


@pytest.mark.parametrize("name", ["a b.csv", "ü+%20.csv", "a#b.csv", "a?b=1.csv", "a&b;c=d.csv", "{a}.csv", "a'b.csv"])
def test_a_key_may_have_any_letters(bucket, tmp_path, name):
    (tmp_path / "local.csv").write_bytes(DATA)
    url = bucket.url(f"odd/{name}")
    urls.write_file(url, tmp_path / "local.csv")
    assert bucket.keys() == [f"odd/{name}"]
    assert urls.list_files(bucket.url("odd"), (".csv",)) == [url]
    assert read(Path(url)) == DATA


def test_a_folder_may_be_written_to_without_the_right_to_remove(bucket):
    bucket.fail(method="DELETE", times=None, status=403, code="AccessDenied")
    bucket.fail(method="POST", key="delete", times=None, status=403, code="AccessDenied")
    urls.check_writable(bucket.url("out"))
    assert bucket.keys() == ["out/.dcdctl-write-trial"]
    assert urls.list_folder(bucket.url("out")) == {}


def test_a_file_is_written_and_compared(bucket, tmp_path, monkeypatch):
    path = tmp_path / "a.bin"
    path.write_bytes(DATA)
    urls.check_writable(bucket.url("out"))
    assert bucket.keys() == []
    for place in (bucket.url("out/a.bin"), tmp_path / "b" / "a.bin", "memory://written/a.bin"):
        urls.write_file(place, path)
        assert read(place) == DATA
    # In parts of 5 MiB, the least that S3 takes.
    monkeypatch.setattr(file_systems, "PART_BYTES", 5 << 20)
    path.write_bytes(DATA * 641)
    bucket.requests.clear()
    urls.write_file(bucket.url("large.bin"), path)
    assert bucket.get("large.bin") == DATA * 641
    # The ETag is that of the parts, so nothing was read back.
    assert not [request for request in bucket.requests if request.startswith("GET")]


# Two parts of 5 MiB and the rest.
@pytest.mark.parametrize("size", [pytest.param(1, id="one"), pytest.param(641, id="parts", marks=pytest.mark.slow)])
def test_an_upload_that_fails_leaves_what_was_there(bucket, tmp_path, monkeypatch, size):
    monkeypatch.setattr(file_systems, "PART_BYTES", 5 << 20)
    path = tmp_path / "a.bin"
    path.write_bytes(DATA * size)
    bucket.put("a.bin", b"before")
    for fault in ({"drop_after": 1000}, {"status": 503, "code": "SlowDown"}):
        bucket.faults.clear()
        bucket.fail(method="PUT", times=2, **fault)
        urls.write_file(bucket.url("b.bin"), path)
        assert bucket.get("b.bin") == DATA * size
        bucket.fail(method="PUT", times=None, **fault)
        with pytest.raises(SourceError, match="gave up after 5 attempts") as failed:
            urls.write_file(bucket.url("a.bin"), path)
        assert_no_key(failed.value)
        assert bucket.get("a.bin") == b"before"
        assert bucket.uploads() == 0


def test_an_upload_that_is_not_the_file_is_an_error(bucket, tmp_path):
    path = tmp_path / "a.bin"
    path.write_bytes(DATA)
    for other in (DATA[:-1], DATA[::-1]):
        bucket.fail(method="PUT", then=lambda other=other: bucket.put("a.bin", other))
        with pytest.raises(SourceError, match="after its upload"):
            urls.write_file(bucket.url("a.bin"), path)
