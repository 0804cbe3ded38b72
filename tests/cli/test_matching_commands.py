"""BLIP, BLIP-2 and BridgeTower in `export`."""

from __future__ import annotations

import pytest
from command_line import run
from families import with_noise
from matching import make_blip, make_blip2, make_bridgetower

from dcdctl.core import models

MAKERS = {"BLIP": make_blip, "BLIP-2": make_blip2, "BridgeTower": make_bridgetower}


@pytest.mark.parametrize("name", MAKERS)
def test_a_model_or_its_student_is_exported_to_transformers(name, corpus, scenes_corpus_dir, tmp_path):
    model = with_noise(MAKERS[name](corpus.captions))
    if name != "BLIP-2":  # it has no student
        model = model.student([0, 2])
    models.save(model, tmp_path / "model")
    # transformers alone gave the same logits
    run(f"export {tmp_path}/model --out {tmp_path}/export --to transformers --data {scenes_corpus_dir}")
    card = (tmp_path / "export" / "README.md").read_text()
    assert "return match - no_match" in card
    assert f"import {model.export_spec().model_class}, " in card
    assert models.load(tmp_path / "export").num_layers == model.num_layers
