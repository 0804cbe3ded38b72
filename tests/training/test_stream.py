"""Trainings on a stream of shards: exact resume, the numbers of a batch, and what is refused."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from duals import save_dual
from safetensors.torch import load_file
from shards import rows_of, stream_of, tar_of, with_bad_rows, write_shards
from tiny import make_models, make_pool, make_wide_dual
from torch.nn import functional
from training_steps import DUAL, KilledError, killed_after

from dcdctl.core import models, training
from dcdctl.core.data import decode_image
from dcdctl.core.engines import Compute
from dcdctl.core.errors import ConfigError, InputError, ModelError, StaleError
from dcdctl.core.evaluation import EvalJob, run_evaluation
from dcdctl.core.integrity import verify
from dcdctl.core.training import InputRefs, Run, TrainingJob, TrainingOptions
from dcdctl.core.training.batches.batch import MicroBatchPlan
from dcdctl.core.training.batches.stream import StreamBatches, StreamTeacher
from dcdctl.core.training.recipe import BatchConfig

SIZES = (7, 11, 9, 6)
SETS = [
    *DUAL,
    "loss.terms={ infonce = 1.0 }",
    "batch.size=4",
    "stream.window=12",
    "optimizer.save_every=5",
    "optimizer.lr=1e-3",
]
OPTIONS = TrainingOptions()
NOT_FUSION = ["model.num_text_layers=2", "model.projection_dim=256"]
"""The settings of SETS that a fusion model does not have, at their defaults."""
NOT_NEW = ["model.hidden_size=128", "model.num_layers=6", "model.vocab_size=4000"]
"""Those of a new model."""


@pytest.fixture
def tars(tmp_path):
    return write_shards(tmp_path / "tars", rows_of(SIZES, num_captions=2))


@pytest.fixture(scope="module")
def dual_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dual") / "model"
    models.save(
        make_wide_dual([caption for rows in rows_of(SIZES) for _, captions in rows for caption in captions]), folder
    )
    return folder


def run(places, out, *sets, options=OPTIONS, resume=False, watch=None, **refs):
    job = TrainingJob("distill", "tiny-student", [*SETS, "optimizer.steps=15", *sets], out, resume)
    return training.train_model(
        job, InputRefs(data=places, **refs), options=options, **({} if watch is None else {"watch": watch})
    )


def weights(trained):
    return load_file(trained.model_folder / "model.safetensors")


def assert_equal_weights(one, other):
    assert weights(one).keys() == weights(other).keys()
    assert all(torch.equal(tensor, weights(other)[name]) for name, tensor in weights(one).items())


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An uninterrupted run on other files with the bytes of `tars`. Not to be written to."""
    folder = tmp_path_factory.mktemp("whole")
    return run(write_shards(folder / "tars", rows_of(SIZES, num_captions=2)), folder / "run")


def test_a_killed_training_resumes_to_the_weights_of_an_uninterrupted_one(tars, whole, tmp_path):
    with pytest.raises(KilledError):
        run(tars, tmp_path / "killed", watch=killed_after(13))  # in the second epoch
    # As a kill in the middle of a write leaves it.
    with (tmp_path / "killed" / "shards.jsonl").open("a") as file:
        file.write('{"shard": 3, "sam')
    resumed = run(tars, tmp_path / "killed", resume=True)
    assert_equal_weights(whole, resumed)
    assert [line["loss"] for line in whole.metrics()] == [line["loss"] for line in resumed.metrics()]
    counts = {line["shard"]: line["samples"] for line in Run(tmp_path / "killed").read_lines("shards.jsonl", "")}
    assert counts == dict(enumerate(SIZES))


def test_a_killed_training_that_skips_samples_resumes_to_the_weights_of_an_uninterrupted_one(tmp_path):
    shards = with_bad_rows(rows_of((9, 13, 11, 8), num_captions=2))
    places, skip = write_shards(tmp_path / "bad", shards), ["stream.on_error=skip", "stream.max_skipped=0.3"]
    whole = run(places, tmp_path / "whole", *skip)
    with pytest.raises(KilledError):
        run(places, tmp_path / "killed", *skip, watch=killed_after(13))
    resumed = run(places, tmp_path / "killed", *skip, resume=True)
    assert_equal_weights(whole, resumed)
    counts = [(line["samples"], line["skipped"]) for line in resumed.read_lines("shards.jsonl", "")]
    assert sorted(counts) == [(6, 2), (7, 2), (9, 2), (11, 2)]


def test_the_counts_of_a_run_are_verified_and_lost_ones_counted_again(tars, whole, tmp_path):
    folder = shutil.copytree(whole.folder, tmp_path / "run")
    path = folder / "shards.jsonl"
    assert not [line for artifact in verify(folder).artifacts for line in artifact.damages]
    path.write_text(path.read_text().replace('"samples": 9', '"samples": 8'))
    (damage,) = [line for artifact in verify(folder).artifacts for line in artifact.damages]
    assert "shards.jsonl is damaged, or of another run: it does not match its checksum" in damage
    with pytest.raises(KilledError):
        run(tars, tmp_path / "killed", watch=killed_after(13))
    (tmp_path / "killed" / "shards.jsonl").unlink()
    assert_equal_weights(whole, run(tars, tmp_path / "killed", resume=True))


def test_the_counts_of_another_run_of_the_recipe_are_refused(tars, whole, tmp_path):
    with pytest.raises(KilledError):
        run(tars, tmp_path / "killed", watch=killed_after(6))
    shutil.copy(whole.folder / "shards.jsonl", tmp_path / "killed")
    with pytest.raises(
        InputError, match=r"line 1 of .*killed/shards\.jsonl is damaged, or of another run: .*; delete it"
    ):
        run(tars, tmp_path / "killed", resume=True)


def test_worker_processes_and_parquet_change_nothing(tars, tmp_path):
    whole = run(tars, tmp_path / "whole", "optimizer.steps=6")
    parquet = write_shards(tmp_path / "parquet", rows_of(SIZES, num_captions=2), ".parquet")
    options = TrainingOptions(compute=Compute(workers=2))
    assert_equal_weights(whole, run(parquet, tmp_path / "other", "optimizer.steps=6", options=options))


def test_micro_batches_train_what_a_whole_batch_does(tars, tmp_path, dual_folder):
    learned = ["loss.terms={ infonce = 1.0, kl = 0.5 }", "optimizer.steps=4"]
    teacher = {"teachers": [str(dual_folder)]}
    whole = run(tars, tmp_path / "whole", *learned, **teacher)
    split = run(tars, tmp_path / "split", *learned, options=TrainingOptions(micro_batches=3), **teacher)
    for before, after in zip(whole.metrics(), split.metrics(), strict=True):
        assert {**after, "seconds": 0} == pytest.approx({**before, "seconds": 0}, rel=1e-5, abs=1e-6)


def test_each_process_decodes_only_its_images(tars):
    preprocess = make_wide_dual(["a thing"]).preprocess
    batches = StreamBatches(
        stream_of(tars), preprocess, BatchConfig(size=4), MicroBatchPlan(4, range(2, 4), by_side=True)
    )
    ((samples, _),) = batches._encoded(range(3, 4))
    assert [bool(sample.image) for sample in samples] == [False, False, True, True]
    whole = next(StreamBatches(stream_of(tars), preprocess, BatchConfig(size=4)).read(range(3, 4), 0))
    local = next(batches.read(range(3, 4), 0))
    assert torch.equal(local.micro_batches[0].images.pixel_values, whole.images.pixel_values[2:3])
    assert torch.equal(local.micro_batches[1].texts.input_ids[0, :5], whole.texts.input_ids[3, :5])


def test_a_dual_teacher_gives_the_scores_and_vectors_of_its_model(tars):
    dual, (_, student) = make_wide_dual(["a thing 0 1"]), make_models(["a thing 0 1"])
    batches = StreamBatches(
        stream_of(tars), student.preprocess, BatchConfig(size=4), teacher=StreamTeacher(dual.eval(), Compute(), True)
    )
    (batch,) = batches.read(range(2, 3), 0)
    ((samples, _),) = batches._encoded(range(2, 3))
    with torch.no_grad():
        images = functional.normalize(
            dual.embed_images(dual.preprocess.images([decode_image(sample.image) for sample in samples])), dim=-1
        )
        texts = functional.normalize(
            dual.embed_texts(dual.preprocess.texts([sample.captions[0] for sample in samples])), dim=-1
        )
        torch.testing.assert_close(batch.teacher_RC, dual.logit_scale * images @ texts.T)
    torch.testing.assert_close(batch.teacher_images_IE, images)
    torch.testing.assert_close(batch.teacher_texts_TE, texts)


def test_the_bias_of_a_siglip_is_part_of_the_logits_of_teacher_and_student(tars, tmp_path):
    dual = models.load_dual(save_dual("SigLIP", ["a thing 0 1"], tmp_path / "siglip")).eval()
    dual.network.logit_bias.data.fill_(-3.0)
    batches = StreamBatches(
        stream_of(tars), dual.preprocess, BatchConfig(size=4), teacher=StreamTeacher(dual, Compute(), False)
    )
    for batch in batches.read(range(3), 0):
        with torch.no_grad():
            images, texts = dual.embed_images(batch.images), dual.embed_texts(batch.texts)
            logits, _ = dual.logits(dual.outputs(batch), batch)
            expected = dual.logit_scale * images @ texts.T - 3.0
        # Images in the order of the rows, each with all captions in the order of the columns.
        assert batch.image_ix_RC.tolist() == [[row] * 4 for row in range(4)]
        torch.testing.assert_close(batch.teacher_RC, expected, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)


def test_each_step_reads_the_caption_that_its_seed_draws(tmp_path):
    shards = [
        [(image, [*captions, *captions][: 1 + row % 4]) for row, (image, captions) in enumerate(rows)]
        for rows in rows_of(SIZES, num_captions=4)
    ]
    places, preprocess = write_shards(tmp_path, shards), make_wide_dual(["a thing 0 1 2 3"]).preprocess
    stream = stream_of(places, seed=5)
    batches = StreamBatches(stream_of(places, seed=5), preprocess, BatchConfig(size=4)).read(range(12), 0)
    # Two passes and a half: an image has other captions in each.
    for step, batch, samples in zip(range(12), batches, stream.read(0), strict=False):
        rng = np.random.default_rng([5, 2, step])
        drawn = [sample.captions[int(rng.integers(0, len(sample.captions)))] for sample in samples]
        assert torch.equal(batch.texts.input_ids, preprocess.texts(drawn).input_ids)


def test_equal_captions_and_equal_files_are_no_negatives(tmp_path):
    (rows,) = rows_of([4])
    rows[1] = (rows[1][0], ["another", "A thing 0 0  0!"])  # the text of row 0 as its second caption
    rows[3] = (rows[2][0], rows[3][1])
    (tmp_path / "0.tar").write_bytes(tar_of(rows))
    batches = StreamBatches(
        stream_of([str(tmp_path / "0.tar")], window=4), make_wide_dual(["a thing"]).preprocess, BatchConfig(size=4)
    )
    ((samples, same_QG),) = batches._encoded(range(1))
    row = {int(sample.where[-1]): number for number, sample in enumerate(samples)}
    expected = torch.zeros(4, 4, dtype=torch.bool)
    expected[row[1], row[0]] = expected[row[2], row[3]] = expected[row[3], row[2]] = True
    # The other way round only if the second caption of row 1 was drawn.
    expected[row[0], row[1]] = samples[row[1]].captions[0].startswith("A thing")
    assert same_QG.tolist() == expected.tolist()


def test_an_image_that_cannot_be_decoded_is_an_error_that_names_it_or_is_left_out(tmp_path):
    (rows,) = rows_of([12])
    rows[5] = (rows[5][0][:-80], rows[5][1])
    (tmp_path / "0.tar").write_bytes(tar_of(rows))
    with pytest.raises(
        InputError,
        match=r"0.tar s0005: the image is truncated.*; leave such samples out with --set stream.on_error=skip",
    ):
        run([str(tmp_path / "0.tar")], tmp_path / "run")
    kept = run([str(tmp_path / "0.tar")], tmp_path / "other", "stream.on_error=skip")
    (line,) = kept.read_lines("shards.jsonl", "")
    assert (line["samples"], line["skipped"]) == (11, 1)
    assert line["reason"].startswith("s0005: the image is truncated")


def test_epochs_count_the_rows_of_parquet_files(tmp_path):
    parquet = write_shards(tmp_path / "parquet", rows_of(SIZES), ".parquet")
    job = TrainingJob(
        "distill", "tiny-student", [*SETS, "optimizer.steps=none", "optimizer.epochs=1.5"], tmp_path / "run"
    )
    preview = training.preview(job, InputRefs(data=parquet), OPTIONS)
    assert (preview.num_steps, preview.batches_per_epoch) == (12, 8)
    assert training.train_model(job, InputRefs(data=parquet), options=OPTIONS).metrics()[-1]["step"] == 11


def test_validation_is_on_a_prepared_corpus(tars, scenes_corpus_dir, tmp_path):
    trained = run(
        tars, tmp_path / "run", "optimizer.steps=2", "validation.every=1", validation_data=[scenes_corpus_dir]
    )
    assert [line["step"] for line in trained.metrics() if "val_rsum" in line] == [0, 1]


def test_a_dual_teacher_of_a_stream_validates_on_a_pool(tars, dual_folder, tmp_path):
    make_pool(tmp_path / "pool", [["a red dog"], ["a blue cat"], ["a hat"]], split="val", has_colors=True)
    sets = ["loss.terms={ kl = 1.0 }", "optimizer.steps=2", "validation.every=1", "validation.metric=agreement"]
    inputs = {"validation_data": [tmp_path / "pool"], "teachers": [str(dual_folder)]}
    trained = run(tars, tmp_path / "run", *sets, **inputs)
    job = EvalJob(model=str(trained.folder), data=tmp_path / "pool", split="val", against=str(dual_folder))
    best = max(line["val_ndcg"] for line in trained.metrics())
    assert run_evaluation(job).agreement.ndcg == pytest.approx(best, abs=1e-9)
    with pytest.raises(ConfigError, match=r"validation\.metric is agreement, and no teacher has scores of"):
        run(tars, tmp_path / "other", "validation.metric=agreement", validation_data=[tmp_path / "pool"])


def test_a_training_on_a_corpus_may_validate_on_another_one(scenes_corpus_dir, tmp_path):
    sets = [*SETS, "optimizer.steps=1", "validation.every=1", "validation.split=train"]
    job = TrainingJob("distill", "tiny-student", sets, tmp_path / "run")
    other = tmp_path / "copy"
    other.symlink_to(scenes_corpus_dir)
    with pytest.raises(ConfigError, match=r"validation.split is train, and the training reads --split train"):
        training.train_model(job, InputRefs(data=scenes_corpus_dir), options=OPTIONS)
    assert (
        "val_rsum"
        in training.train_model(
            job, InputRefs(data=scenes_corpus_dir, validation_data=[other]), options=OPTIONS
        ).metrics()[-1]
    )


def test_a_shard_that_has_changed_refuses_to_resume(tars, tmp_path):
    with pytest.raises(KilledError):
        run(tars, tmp_path / "run", watch=killed_after(6))
    status = Path(tars[2]).stat()
    os.utime(tars[2], ns=(status.st_atime_ns, status.st_mtime_ns + 1000))
    with pytest.raises(StaleError, match=r"was made with another inputs.shards.*2.tar \(.*version.*not.*version"):
        run(tars, tmp_path / "run", resume=True)
    os.utime(tars[2], ns=(status.st_atime_ns, status.st_mtime_ns))
    assert run(tars, tmp_path / "run", resume=True).is_finished
    with pytest.raises(StaleError, match="already holds a run"):
        run(tars, tmp_path / "run")


@pytest.mark.parametrize(
    ("sets", "refs", "message"),
    [
        ((), {"caches": [Path("c")]}, "--cache needs a prepared corpus"),
        (["loss.terms={ dcd = 1.0 }"], {}, "loss dcd needs a prepared corpus"),
        (["loss.terms={ kl = 1.0 }"], {}, "loss kl needs the teacher's scores"),
        (
            ["loss.terms={ kl = 1.0 }", "loss.temperature=auto"],
            {},
            "loss.temperature auto needs a prepared corpus",
        ),
        (["captions.checked=0.5"], {}, "captions.checked needs a prepared corpus"),
        (["candidates.duplicate_bits=3"], {}, "candidates.duplicate_bits needs a prepared corpus"),
        (
            ["model.kind=fusion", *NOT_FUSION, *NOT_NEW, "model.start=teacher"],
            {},
            "model.start teacher needs a prepared corpus",
        ),
        ((), {"split": "val"}, "--split val needs a prepared corpus"),
        ((), {"max_images": 5}, "--max-images needs a prepared corpus"),
        (
            ["validation.every=1"],
            {},
            "validation.every is set, and a stream has no split to validate on; .*--validation-data",
        ),
        (["optimizer.steps=none"], {}, "tars do not say how many samples they have; set optimizer.steps"),
        (["stream.window=3"], {}, "stream.window is 3, less than batch.size 4"),
        (["stream.windows=3"], {}, "windows"),
    ],
)
def test_what_needs_a_prepared_corpus_is_refused(tars, tmp_path, sets, refs, message):
    with pytest.raises(ConfigError, match=message):
        run(tars, tmp_path / "run", *sets, **refs)
    assert not (tmp_path / "run").exists()


def test_several_teachers_and_features_are_refused(tars, tmp_path, dual_folder):
    with pytest.raises(ConfigError, match="an average of several --teacher needs a prepared corpus"):
        run(tars, tmp_path / "run", "loss.terms={ kl = 1.0 }", teachers=[str(dual_folder), str(dual_folder)])
    features = TrainingOptions(compute=replace(Compute(), features=tmp_path / "f"))
    with pytest.raises(ConfigError, match="--features needs a prepared corpus"):
        run(tars, tmp_path / "run", options=features)


def test_a_fusion_model_trains_on_a_stream(tars, tmp_path):
    sets = ["model.kind=fusion", *NOT_FUSION, "model.image_size=32", "optimizer.steps=2"]
    trained = run(tars, tmp_path / "run", *sets)
    assert len(trained.metrics()) == 2


def test_a_late_student_of_a_stream_resumes_to_the_same_weights_and_has_no_late_teacher(tars, tmp_path):
    sets = ["model.kind=late", "model.token_dim=4", "optimizer.steps=4", "optimizer.save_every=2"]
    whole = run(tars, tmp_path / "whole", *sets)
    with pytest.raises(KilledError):
        run(tars, tmp_path / "killed", *sets, watch=killed_after(3))
    resumed = run(tars, tmp_path / "killed", *sets, resume=True)
    assert models.load(resumed.model_folder).digest == models.load(whole.model_folder).digest
    assert [line["loss"] for line in whole.metrics()] == [line["loss"] for line in resumed.metrics()]
    with pytest.raises(ModelError, match="is a late-interaction model, expected a dual encoder"):
        run(tars, tmp_path / "taught", *sets, "loss.terms={ kl = 1.0 }", teachers=[str(whole.model_folder)])
