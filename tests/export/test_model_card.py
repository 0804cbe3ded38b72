"""The card of an exported model, from what its run's folder holds."""

from __future__ import annotations

import json
from functools import cache

import pytest
from evaluations import write_json, write_metrics
from huggingface_hub import ModelCard
from made_runs import scores_of, write_bench, write_evaluation, write_run
from tiny import make_models

from dcdctl.core.data import Corpus
from dcdctl.core.export import ExportJob, model_card
from dcdctl.core.export.history import read_history
from dcdctl.core.export.to_onnx import Onnx


@pytest.fixture(scope="module")
def gallery(scenes_corpus_dir):
    return Corpus.open(scenes_corpus_dir, "test")


@pytest.fixture
def run(gallery, tmp_path):
    """A run that was trained with a teacher's cache on the train split of an available corpus, evaluated and timed."""
    folder = write_evaluation(write_run(tmp_path / "runs" / "dual"), gallery, scores_of(gallery, 2))
    write_bench(folder, "/models/scenes-vilt", student_ms=2, teacher_ms=100)
    facts = json.loads((folder / "run.json").read_text())
    facts["inputs"] |= {
        "corpus": Corpus.open(gallery.folder, "train").fingerprint,
        "cache": {"teacher": "f00dfacecafe1234"},
    }
    facts["command"] = [
        "dcdctl",
        "distill",
        "demo-dual",
        "--data",
        str(gallery.folder),
        "--out",
        str(folder),
        "--teacher",
        "scenes-vilt",
    ]
    write_json(folder / "run.json", facts)
    return folder


@cache
def make_dual():
    return make_models(["a dog"])[1]


def card_of(ref, tmp_path, license=None) -> tuple[ModelCard, str]:
    job = ExportJob(model=str(ref), out=tmp_path, to="onnx", license_id=license, push_to_hub="me/dual")
    model_card.write(Onnx(job, make_dual(), tmp_path), "a scene: close", read_history(str(ref)))
    card = ModelCard.load(tmp_path / "README.md")
    return card, card.text


def test_the_header_is_readable_by_the_hub(run, gallery, tmp_path):
    result = json.loads((run / "result.json").read_text())
    result["image_retrieval"]["R@5"] = 200 / 3
    write_json(run / "result.json", result)
    card, _ = card_of(run, tmp_path, "apache-2.0")
    assert (card.data.license, card.data.library_name, card.data.pipeline_tag) == (
        "apache-2.0",
        "onnx",
        "feature-extraction",
    )
    assert card.data.tags == ["image-text-retrieval", "knowledge-distillation", "dcdctl", "onnx"]
    assert card.data.model_name == "me/dual"
    found = {one.metric_name: one for one in card.data.eval_results}
    assert {name: one.metric_value for name, one in found.items()} == {
        f"{title} {k}": round(result[key][k], 2)
        for title, key in (("Text retrieval", "text_retrieval"), ("Image retrieval", "image_retrieval"))
        for k in ("R@1", "R@5", "R@10")
    }
    one = found["Image retrieval R@5"]
    assert (one.metric_value, one.task_name) == (66.67, "Image-text retrieval")
    assert (one.dataset_name, one.dataset_split, one.metric_type) == ("scenes", "test", "image_retrieval_r_at_5")
    assert one.dataset_args == {"fingerprint": gallery.fingerprint, "images": 16, "captions": 80}


def test_the_body_has_recalls_with_intervals_speed_teacher_data_and_recipe(run, tmp_path):
    _, text = card_of(run, tmp_path, "apache-2.0")
    result = json.loads((run / "result.json").read_text())
    low, high = result["intervals"]["text_retrieval"]["R@1"]
    assert f"| Text retrieval | {result['text_retrieval']['R@1']:.2f} ({low:.1f} to {high:.1f}) |" in text
    assert "on scenes, split test: 16 images, 80 captions" in text
    assert (
        "1,000 images, encoded beforehand: 2.00 ms, 50.0 times as fast as scenes-vilt, on Made-up CPU, 2 threads"
        in text
    )
    assert "Trained on scenes, split train; seed 0. Teacher: scenes-vilt (fingerprint f00dfacecafe)." in text
    assert "dcdctl distill demo-dual --data scenes --out dual --teacher scenes-vilt" in text
    assert "\nloss.terms.margin-mse = " in text
    assert "Weights: apache-2.0. Training data: scenes (dcdctl, dcdctl/core/scenes.py), Apache-2.0." in text
    assert "```python\nimport numpy as np\nimport onnxruntime\n" in text
    assert "pip install onnxruntime 'transformers>=5' pillow" in text
    assert "Compared with the trained model when it was exported, on a scene: close.\n" in text
    assert str(tmp_path) not in text


@pytest.mark.parametrize(
    ("shards", "said"),
    [
        (
            ["https://host/cc-0000.tar", "https://host/cc-0331.tar"],
            "2 shards (https://host/cc-0000.tar to cc-0331.tar)",
        ),
        (["/home/me/photos.parquet"], "1 shard (photos.parquet)"),
    ],
)
def test_a_run_trained_on_a_stream_names_its_shards_and_counts_its_pairs(run, tmp_path, shards, said):
    facts = json.loads((run / "run.json").read_text())
    facts["inputs"] |= {
        "corpus": 64 * "e",
        "split": "stream",
        "shards": dict.fromkeys(shards, "1 bytes"),
        "steps": 300,
        "cache": None,
    }
    facts["recipe"]["batch"]["size"] = 32
    write_json(run / "run.json", facts)
    _, text = card_of(run, tmp_path)
    assert f"Trained on 9,600 image-caption pairs, streamed from {said}; seed 0." in text
    assert "stream split" not in text
    assert "split stream" not in text


def test_missing_measurements_are_replaced_by_their_commands(run, tmp_path):
    for name in ("result.json", "bench.json"):
        (run / name).unlink()
    card, text = card_of(run, tmp_path)
    assert (card.data.eval_results, card.data.license) == (None, None)
    assert "## Recall\n\nNot measured: `dcdctl eval dual --data DIR`." in text
    assert "## Speed\n\nNot measured: `dcdctl bench dual --teacher REF --data DIR`." in text
    assert "Weights: no license was given for the export (`dcdctl export --license ID`)." in text


def test_a_changed_corpus_is_not_named(run, tmp_path):
    facts = json.loads((run / "run.json").read_text())
    facts["inputs"] |= {"corpus": 64 * "e", "cache": None}
    facts["command"] = facts["command"][:-2]
    write_json(run / "run.json", facts)
    card, text = card_of(run, tmp_path)
    assert "Trained on a corpus with the fingerprint eeeeeeeeeeee, split train; seed 0. No teacher." in text
    assert "Training data" not in text
    assert card.data.tags == ["image-text-retrieval", "dcdctl", "onnx"]


def test_dual_teachers_without_a_cache_are_named(run, tmp_path):
    facts = json.loads((run / "run.json").read_text())
    facts["inputs"] |= {"cache": None, "teachers": [{"teacher": "f00dfacecafe1234"}, {"teacher": "abcdabcdabcd1234"}]}
    write_json(run / "run.json", facts)
    card, text = card_of(run, tmp_path)
    assert "Teacher: scenes-vilt (fingerprint f00dfacecafe, abcdabcdabcd)." in text
    assert "knowledge-distillation" in card.data.tags


def test_a_model_outside_a_run_has_no_training_history(tmp_path):
    _, text = card_of("scenes-vilt", tmp_path)
    assert "Unknown: scenes-vilt is not a run of `dcdctl distill`" in text


def test_pretrained_encoders_of_the_hub_are_base_models(run, tmp_path):
    facts = json.loads((run / "run.json").read_text())
    facts["recipe"]["model"] |= {"vision": "timm/tf_efficientnet_lite0.in1k", "text": "/models/minilm"}
    write_json(run / "run.json", facts)
    card, text = card_of(run, tmp_path)
    assert card.data.base_model == ["timm/tf_efficientnet_lite0.in1k"]
    assert '\nmodel.text = "minilm"\n' in text


START = "openai/clip-vit-base-patch32@3d74acf9"
TRAINED = {"start": START, "trained": "lora", "lora_rank": 4, "lora_alpha": 8.0, "average_with_start": 0.3}


def tuned(run, gallery, model=TRAINED):
    """The run with a start."""
    facts = json.loads((run / "run.json").read_text())
    facts["recipe"]["model"] |= model
    facts["inputs"] |= {"validation": Corpus.open(gallery.folder, "val").fingerprint, "images": 0}
    write_json(run / "run.json", facts)
    write_metrics(run, [])
    return run


def test_the_start_is_named_and_what_was_not_measured(run, gallery, tmp_path):
    card, text = card_of(tuned(run, gallery), tmp_path)
    assert card.data.base_model == ["openai/clip-vit-base-patch32"]
    start = "openai/clip-vit-base-patch32@3d74acf9 (fingerprint aaaaaaaaaaaa)"
    assert f"## Start, gains and losses\n\nStarted from {start}. `model.trained`" in text
    assert "\n\nNot measured: what was gained and lost." in text
    _, text = card_of(tuned(run, gallery, {"start": "/home/me/models/clip"}), tmp_path)
    assert "Started from clip (fingerprint aaaaaaaaaaaa)." in text
    _, text = card_of("scenes-vilt", tmp_path)
    assert "Started from" not in text


def test_what_the_training_validated_is_on_the_card(run, gallery, tmp_path):
    tuned(run, gallery, {**TRAINED, "average_with_start": "auto"})
    facts = json.loads((run / "run.json").read_text())
    facts["validated_on"] = ["scenes", "other"]
    facts["inputs"]["validation_elsewhere"] = {"other": 64 * "b"}
    write_json(run / "run.json", facts)
    sums = {"val_rsum": 120, "start_rsum": 60, "other/start_rsum": 300}
    # Another average comes before the one that is saved.
    averages = [
        {"step": 0, "share": share, "saved_rsum": rsum, "other/saved_rsum": elsewhere}
        for share, rsum, elsewhere in ((0.9, 70, 299), (0.4, 90, 294), (0.4, 90, 294))
    ]
    write_metrics(run, [{"step": 0, **sums}, *averages])
    _, text = card_of(run, tmp_path)
    assert "Validation, RSUM, by the training itself:\n\n| corpus | start | saved model | change |\n" in text
    assert "| scenes | 60.00 | 90.00 | +30.00 |\n| other | 300.00 | 294.00 | -6.00 |\n" in text
