"""Streams of shards: their order, from any step, from any place, and what is refused."""

from __future__ import annotations

import io
import os
import tarfile
from itertools import chain
from pathlib import Path

import fsspec
import loopback
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from image_files import png
from shards import add, captions_of, parquet_of, rows_of, stream_of, tar_of, with_bad_rows, write_shards

from dcdctl.core.data import ShardStream, is_stream, open_shards, urls
from dcdctl.core.data.download import http
from dcdctl.core.data.images import ImageStore
from dcdctl.core.errors import ConfigError, DcdError, InputError, MissingError, SourceError, StaleError

SIZES = (7, 11, 9, 6)  # 33 samples: 8 batches of 4, and one sample that fills none


@pytest.fixture
def tars(tmp_path):
    return write_shards(tmp_path / "tars", rows_of(SIZES))


def everything(sizes=SIZES):
    return {f"a thing {shard} {row} 0" for shard, size in enumerate(sizes) for row in range(size)}


def joined(batches):
    return list(chain.from_iterable(batches))


def test_an_epoch_has_each_sample_once_and_each_epoch_another_order(tars):
    batches = captions_of(stream_of(tars), range(16))
    epochs = [joined(batches[:8]), joined(batches[8:])]
    for epoch in epochs:
        assert len(set(epoch)) == len(epoch) == 32
        assert set(epoch) < everything()
    assert epochs[0] != epochs[1]


def test_a_window_holds_consecutive_samples_of_the_permuted_shards_shuffled(tars):
    stream = stream_of(tars)
    in_order = [f"a thing {shard} {row} 0" for shard in stream.order(0) for row in range(SIZES[shard])]
    batches = captions_of(stream, range(8))
    for number in range(3):  # of 12, 12 and 9 samples
        window, shuffled = in_order[12 * number : 12 * number + 12], joined(batches[3 * number : 3 * number + 3])
        assert set(shuffled) <= set(window)
        assert shuffled != window[: len(shuffled)]
    assert sorted(stream.order(0)) == sorted(stream.order(1)) == [0, 1, 2, 3]


@pytest.fixture(
    scope="module", params=[(ending, on_error) for ending in (".tar", ".parquet") for on_error in ("stop", "skip")]
)
def read_whole(request, tmp_path_factory):
    """The places of shards, what is done on an error, the first 22 batches, and the counts of the shards after them."""
    ending, on_error = request.param
    places = write_shards(tmp_path_factory.mktemp("shards"), rows_of(SIZES), ending)
    whole = stream_of(places, on_error=on_error)
    return places, on_error, captions_of(whole, range(22)), whole.counts


@pytest.mark.parametrize("step", [1, 3, 5, 7, 8, 12, 19])
def test_the_batches_from_a_step_on_do_not_depend_on_what_was_read_before(read_whole, step):
    places, on_error, batches, counts = read_whole
    expected = batches[step : step + 3]
    resumed = stream_of(places, on_error=on_error)
    resumed.counts = dict(counts)
    assert captions_of(resumed, range(step, step + 3)) == expected
    # Without the counts the shards are read again.
    assert captions_of(stream_of(places, on_error=on_error), range(step, step + 3)) == expected


@pytest.mark.parametrize("ending", [".tar", ".parquet"])
def test_a_resumed_stream_that_skips_samples_gives_the_batches_of_an_uninterrupted_one(tmp_path, ending):
    places = write_shards(tmp_path, with_bad_rows(rows_of((9, 13, 11, 8))), ending)
    options = {"on_error": "skip", "max_skipped": 0.3}
    expected = captions_of(stream_of(places, **options), range(22))
    for step in range(1, 20):
        killed, resumed = stream_of(places, **options), stream_of(places, **options)
        captions_of(killed, range(step))
        resumed.counts = dict(killed.counts)
        assert captions_of(resumed, range(step, step + 3)) == expected[step : step + 3]


def test_tars_parquet_and_urls_of_the_same_samples_give_the_same_batches(tmp_path, tars, monkeypatch, bucket):
    expected = captions_of(stream_of(tars), range(10))
    assert captions_of(stream_of(write_shards(tmp_path / "parquet", rows_of(SIZES), ".parquet")), range(10)) == expected
    memory = fsspec.filesystem("memory")
    for number, rows in enumerate(rows_of(SIZES)):
        memory.pipe(f"/birds/{number}.tar", tar_of(rows))
        memory.pipe(f"/birds/{number}.parquet", parquet_of(rows))
    assert captions_of(stream_of(["memory://birds/*.tar"]), range(10)) == expected
    assert captions_of(stream_of(["memory://birds/{0..3}.parquet"]), range(10)) == expected
    for tar in tars:
        bucket.put(f"birds/{Path(tar).name}", Path(tar).read_bytes())
    by_pattern, by_name = (stream_of([bucket.url(f"birds/{names}.tar")]) for names in ("*", "{0..3}"))
    assert captions_of(by_pattern, range(10)) == captions_of(by_name, range(10)) == expected
    # A listing and a request for one object say different things of it.
    assert by_pattern.fingerprint == by_name.fingerprint
    monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")
    files = {Path(tar).name: Path(tar).read_bytes() for tar in tars}
    with loopback.serve(files, {"me/birds": files}) as server:
        assert captions_of(stream_of([f"{server.url}/{{0..3}}.tar"]), range(10)) == expected
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "token"))
        assert captions_of(stream_of(["hf://datasets/me/birds/*.tar"]), range(10)) == expected
        server.gated["me/birds"] = "secret"
        with pytest.raises(
            SourceError, match=r"hf://datasets/me/birds/0.tar was refused \(401 Unauthorized\); it may need a login"
        ):
            stream_of(["hf://datasets/me/birds/0.tar"])
        monkeypatch.setenv("HF_TOKEN", "secret")
        assert captions_of(stream_of(["hf://datasets/me/birds/{0..3}.tar"]), range(10)) == expected


def test_a_server_that_fails_for_a_while_is_asked_again(tars, monkeypatch):
    monkeypatch.setattr(http, "FIRST_WAIT_SECONDS", 0.0)
    with loopback.serve({"0.tar": Path(tars[0]).read_bytes()}) as server:
        stream = stream_of([f"{server.url}/0.tar"])
        server.faults["/0.tar"] = loopback.Fault(status=503, times=2)
        assert len(captions_of(stream, range(1))) == 1
        server.faults["/0.tar"] = loopback.Fault(cut_after=100, times=2)
        assert len(captions_of(stream, range(1))) == 1
        server.faults["/0.tar"] = loopback.Fault(status=503, times=None)
        with pytest.raises(SourceError, match=r"/0.tar: gave up after 5 attempts \(503 Service Unavailable\)"):
            captions_of(stream, range(1))
        server.faults.clear()
        server.ranges = False
        with pytest.raises(SourceError, match="the server sends no byte ranges; download the file first"):
            captions_of(stream, range(1))


def test_a_file_that_changes_on_the_server_is_not_mixed_with_what_was_read(tars):
    first, other = Path(tars[0]).read_bytes(), Path(tars[1]).read_bytes()
    with loopback.serve({"0.tar": first}) as server:
        file = urls.open_file(f"{server.url}/0.tar")
        assert file.read(100) == first[:100]
        for changed in (other, first[::-1], first[:-512]):
            server.files["0.tar"] = changed
            with pytest.raises(StaleError, match=r"/0.tar has changed while it was read"):
                file.read(100)


def test_secrets_in_urls_are_not_shown(monkeypatch):
    monkeypatch.setattr(http, "FIRST_WAIT_SECONDS", 0.0)
    with loopback.serve({}) as server:
        with pytest.raises(SourceError) as missing:
            open_shards([f"{server.url}/a.tar?signature=secret"])
        assert "secret" not in str(missing.value)
        assert f"{server.url}/a.tar does not exist (404 Not Found)" in str(missing.value)
        server.faults["/b.tar"] = loopback.Fault(status=500, times=None)
        with pytest.raises(SourceError) as failing:
            open_shards([f"{server.url}/b.tar?signature=secret"])
        assert "secret" not in str(failing.value)
    with pytest.raises(ConfigError) as password:
        open_shards(["https://me:secret@127.0.0.1:1/a.tar"])
    assert str(password.value).startswith("https://127.0.0.1:1/a.tar is given with a password")


def test_wrong_places_say_what_is_wrong(tmp_path, tars):
    for place, error, words in (
        (str(tmp_path / "absent.tar"), InputError, "absent.tar cannot be read: No such file or directory"),
        (str(tmp_path / "*.parquet"), InputError, "no file matches"),
        (
            "gs://bucket/a.tar",
            MissingError,
            "gs://bucket/a.tar needs a package that is not installed: Please install gcsfs",
        ),
        ("bird://bucket/a.tar", ConfigError, "the protocol bird:// is unknown; known are s3://"),
        *(
            (f"{protocol}://x{rest}", ConfigError, f"the protocol {protocol}:// names no files by a URL alone")
            for protocol in ("reference", "data", "dir", "generic", "jupyter", "github")
            for rest in ("/a.tar", "/*.tar")
        ),
        ("https://host/*.tar", ConfigError, "a web server lists no files; write the names as in"),
        ("memory://nowhere/a.tar", SourceError, "memory://nowhere/a.tar does not exist"),
        (tars[0].replace("0.tar", "{0,0}.tar"), ConfigError, "is named twice"),
    ):
        with pytest.raises(error) as found:
            open_shards([place])
        assert words in str(found.value)
    with pytest.raises(InputError, match=r"birds.zip is not a shard; expected names that end with .tar or .parquet"):
        open_shards([str(tmp_path / "birds.zip")])
    assert not is_stream([str(tmp_path)])
    assert is_stream(tars[:1])


@pytest.mark.parametrize("pattern", ["{0}", "{0}/*.tar"])
def test_a_chained_url_that_does_not_exist_or_is_no_archive_is_one_line(monkeypatch, pattern):
    monkeypatch.setattr(http, "FIRST_WAIT_SECONDS", 0.0)
    memory = fsspec.filesystem("memory")
    memory.pipe("/birds/bad.zip", b"no archive" * 99)
    for url, words in (
        ("zip://0.tar::memory://absent.zip", "does not exist"),
        ("tar://0.tar::memory://absent.tar", "does not exist"),
        ("zip://0.tar::memory://birds/bad.zip", "gave up after 5 attempts"),
        ("simplecache::memory://absent/0.tar", "does not exist"),
        ("simplecache::gs://bucket/0.tar", "install gcsfs"),
        ("zip://0.tar::https://me:secret@host/a.zip?sig=secret", "is given with a password"),
    ):
        place = pattern.format(url)
        with pytest.raises(DcdError) as error:
            urls.size_and_version(urls.expand(place)[0])
        message = str(error.value)
        assert words in message or ("*" in place and "no file matches" in message)
        assert "secret" not in message
        assert "\n" not in message


def test_a_chained_url_is_read(tars):
    fsspec.filesystem("memory").pipe("/birds/0.tar", Path(tars[0]).read_bytes())
    (shard,) = open_shards(["simplecache::memory://birds/0.tar"])
    assert (shard.name, shard.size) == ("simplecache::memory://birds/0.tar", Path(tars[0]).stat().st_size)


def damaged(kind, tmp_path):
    """A shard of ten samples, of which the third is damaged."""
    rows = rows_of([10])[0]
    if kind == "image":
        rows[2] = (rows[2][0][:60], rows[2][1])
    if kind == "no caption":
        rows[2] = (rows[2][0], [])
    return tar_of(rows)


@pytest.mark.parametrize(
    ("kind", "reason"),
    [("image", "s0002: the image is truncated or damaged"), ("no caption", "s0002: the image has no caption")],
)
def test_samples_that_cannot_be_used_are_skipped_and_counted_up_to_a_limit(tmp_path, kind, reason):
    place = tmp_path / "0.tar"
    place.write_bytes(damaged(kind, tmp_path))
    counted = []
    stream = stream_of([str(place)], window=4, on_error="skip")
    stream.on_count = counted.append
    kept = joined(captions_of(stream, range(2)))
    assert "a thing 0 2 0" not in kept
    assert len(set(kept)) == 8
    captions_of(stream, range(4))  # into the next epoch: the shard has ended
    assert [(count.samples, count.skipped) for count in counted] == [(9, 1)]
    assert counted[0].reason.startswith(reason)
    with pytest.raises(
        InputError, match=r"1 of 10 samples of .*0.tar cannot be used, the first: s0002: .* raise stream.max_skipped"
    ):
        captions_of(stream_of([str(place)], window=4, on_error="skip", max_skipped=0.05), range(4))


def test_a_sample_that_cannot_be_used_is_an_error_that_names_it(tmp_path):
    place = tmp_path / "0.tar"
    place.write_bytes(damaged("no caption", tmp_path))
    with pytest.raises(
        InputError, match=r"0.tar s0002: the image has no caption; correct it, or leave such samples out"
    ):
        captions_of(stream_of([str(place)]), range(2))
    table = pa.table({"image": [{"bytes": png(1), "path": None}] * 4, "captions": [["a"], ["b"], [""], ["c"]]})
    pq.write_table(table, tmp_path / "0.parquet")
    with pytest.raises(InputError, match=r"0.parquet row 2: caption 0 is empty"):
        captions_of(stream_of([str(tmp_path / "0.parquet")]), range(1))


@pytest.mark.parametrize("cut", [0.3, 0.51, 0.64])
def test_a_shard_that_is_cut_off_is_an_error(tmp_path, cut):
    for name, data in (("0.tar", tar_of(rows_of([10])[0])), ("0.parquet", parquet_of(rows_of([10])[0]))):
        (tmp_path / name).write_bytes(data[: int(cut * len(data))])
        with pytest.raises(InputError, match=r"0.(tar|parquet).*a download may have been cut off"):
            captions_of(stream_of([str(tmp_path / name)], on_error="skip"), range(3))


@pytest.mark.parametrize("on_error", ["stop", "skip"])
@pytest.mark.parametrize(
    ("name", "data"), [("1.tar", bytes(20_480)), ("1.tar", tar_of([])), ("1.parquet", parquet_of(rows_of([5])[0]))]
)
def test_a_shard_without_samples_is_an_error_that_names_it(tmp_path, tars, name, data, on_error):
    (tmp_path / name).write_bytes(data)
    if name.endswith(".parquet"):
        pq.write_table(pq.read_table(tmp_path / name).slice(0, 0), tmp_path / name)
    with pytest.raises(InputError, match=rf"{name} has no samples; download it again, or leave it out"):
        captions_of(stream_of([*tars, str(tmp_path / name)], on_error=on_error), range(9))


def test_a_parquet_file_without_rows_is_an_error_before_the_training(tmp_path):
    places = write_shards(tmp_path, [rows_of([9])[0], []], ".parquet")
    with pytest.raises(InputError, match=r"1.parquet has no samples"):
        stream_of(places).batches_per_epoch()


@pytest.mark.parametrize("ending", [".tar", ".parquet"])
def test_a_text_of_more_than_a_megabyte_is_an_error_that_names_its_sample(tmp_path, ending):
    (rows,) = rows_of([6])
    rows[2] = (rows[2][0], ["a dog " * 200_000])
    places, sample = write_shards(tmp_path, [rows], ending), {".tar": "s0002", ".parquet": "row 2"}[ending]
    with pytest.raises(InputError, match=rf"0{ending} {sample}: .* is larger than 1,048,576 bytes"):
        captions_of(stream_of(places), range(1))
    stream = stream_of(places, on_error="skip", max_skipped=0.2)
    assert len(captions_of(stream, range(2))) == 2
    assert stream.counts == {0: 5}


def test_a_local_shard_that_changes_within_a_second_has_another_version(tars):
    for when in (1_700_000_000_000_000_000, 1_700_000_000_000_001_000):
        os.utime(tars[0], ns=(when, when))
        assert open_shards(tars)[0].version == str(when)


def test_a_damaged_header_is_not_taken_for_the_end_of_a_tar(tmp_path):
    data = bytearray(tar_of(rows_of([10])[0]))
    at = data.index(b"s0006.png")
    data[at + 130] ^= 0xFF
    (tmp_path / "0.tar").write_bytes(data)
    with pytest.raises(InputError, match=r"is damaged at byte|cannot be read as a tar"):
        captions_of(stream_of([str(tmp_path / "0.tar")]), range(3))


@pytest.mark.parametrize("length", [512, 1024, 4096])
@pytest.mark.parametrize("read", ["stream", "images"])
def test_data_after_the_end_of_a_tar_is_an_error_and_zeros_are_not(tmp_path, length, read):
    path, data = tmp_path / "0.tar", bytearray(tar_of(rows_of([10])[0]))

    def samples():
        return captions_of(stream_of([str(path)]), range(1)) if read == "stream" else ImageStore(path).members()

    path.write_bytes(data + bytes(1 << 21))
    assert samples()
    at = data.index(b"s0006.png")
    data[at : at + length] = bytes(length)
    path.write_bytes(data)
    with pytest.raises(InputError, match=rf"0.tar is damaged at byte {at:,}: it ends there, and data follows"):
        samples()


def test_links_and_paths_that_lead_out_of_a_tar_are_refused(tmp_path):
    with tarfile.open(tmp_path / "0.tar", "w") as archive:
        link = tarfile.TarInfo("a.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
        add(archive, "a.txt", b"a caption")
        add(archive, "../b.png", png(1))
        add(archive, "../b.txt", b"a caption")
    with pytest.raises(InputError, match=r"a: it is a link in the tar to /etc/passwd"):
        captions_of(stream_of([str(tmp_path / "0.tar")]), range(1))


def test_fewer_images_than_a_batch_and_a_small_window_are_errors(tmp_path):
    places = write_shards(tmp_path, rows_of([3]))
    with pytest.raises(ConfigError, match=r"batch.size is 4, the 1 shards have 3 images that can be used"):
        captions_of(stream_of(places), range(1))
    with pytest.raises(ConfigError, match=r"stream.window is 3, less than batch.size 4"):
        stream_of(places, window=3)


@pytest.mark.parametrize("read", [ShardStream.first_batch, ShardStream.first_window, ShardStream.batches_per_epoch])
def test_fewer_images_than_a_batch_are_an_error_of_a_trial_too(tmp_path, read):
    ending = ".parquet" if read == ShardStream.batches_per_epoch else ".tar"
    with pytest.raises(ConfigError, match=r"batch.size is 4, the 2 shards have 3 images that can be used; set"):
        read(stream_of(write_shards(tmp_path, rows_of([2, 1]), ending)))


@pytest.mark.parametrize(
    ("pattern", "count"),
    [("{000..999999999}.tar", "1,000,000,000"), ("{0..9999}-{a,b}{0..99}.tar", "2,000,000"), ("{3..2}.tar", "0")],
)
def test_a_pattern_that_names_no_file_or_too_many_is_an_error_with_their_number(pattern, count):
    with pytest.raises(ConfigError) as error:
        open_shards([pattern])
    assert str(error.value).startswith(f"{pattern} names {count} files, expected 1 to 1,000,000; ")


def test_braces_name_files_in_the_order_written():
    assert urls.expand("{b,a}/{08..10}-x{1..2}.tar") == [
        f"{folder}/{number}-x{part}.tar" for folder in "ba" for number in ("08", "09", "10") for part in "12"
    ]


def test_the_batches_of_an_epoch_are_known_for_parquet_alone(tmp_path):
    assert stream_of(write_shards(tmp_path, rows_of(SIZES), ".parquet")).batches_per_epoch() == 8
    assert stream_of(write_shards(tmp_path, rows_of(SIZES))).batches_per_epoch() is None


def test_other_files_of_a_sample_and_folders_and_json_captions_are_read_like_prepare_does(tmp_path):
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        folder = tarfile.TarInfo("x")
        folder.type = tarfile.DIRTYPE
        archive.addfile(folder)
        for key in "abcd":
            add(archive, f"x/{key}.cls", b"7")
            add(archive, f"x/{key}.jpg", png(ord(key), kind="JPEG"))
            add(archive, f"x/._{key}.jpg", b"of macOS")
            add(archive, f"x/{key}.json", f'{{"caption": "letter {key}"}}'.encode())
    (tmp_path / "0.tar").write_bytes(stream.getvalue())
    (batch,) = captions_of(stream_of([str(tmp_path / "0.tar")]), range(1))
    assert sorted(batch) == ["letter a", "letter b", "letter c", "letter d"]
