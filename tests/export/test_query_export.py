"""A query encoder exported: its texts by sentence-transformers and by ONNX Runtime, without dcdctl."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
import torch
from command_line import document_of, error_of
from families import FAMILIES, late
from forks import LIBRARIES, run_forked

from dcdctl.core import models

CAPTIONS = ["a red circle left of a blue square", "two dogs run on a beach", "a cat", "A DOG."]
TEXTS = [*CAPTIONS, " ".join(CAPTIONS * 20)]
SIZES = {
    "new": models.QuerySize(hidden_size=16, num_layers=1, max_text_len=12),
    "static": models.QuerySize(hidden_size=16, num_layers=0, max_text_len=12),
    "teacher": models.QuerySize(text="teacher"),
    "static teacher": models.QuerySize(text="teacher", num_layers=0),
}
CASES = [("dual", size) for size in SIZES] + [("CLIP", "teacher"), ("SigLIP 2", "teacher"), ("late", "teacher")]
SCRIPT = """
import json, sys
for script in sys.argv[1:]:
    namespace = {}
    exec(open(script).read(), namespace)
    print(json.dumps(namespace.get("vectors", namespace["texts"]).tolist()))
assert "dcdctl" not in sys.modules
"""


def save_query(name, size, folder):
    captions = CAPTIONS * 3
    teacher = (
        late(FAMILIES["dual"](captions, folder), is_pooled=False)
        if name == "late"
        else FAMILIES[name](captions, folder)
    )
    query = models.new_query(
        models.QuerySpace.of(teacher), SIZES[size], tokenizer=models.word_piece(captions, 120), teacher=teacher
    )
    models.save(query, folder / "q")
    return query


def script_of(folder):
    """The code of the card, on `TEXTS`."""
    (code,) = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    return code.replace(f'"{folder.name}"', repr(str(folder))).replace('["a dog in the snow"]', repr(TEXTS))


def vectors_of(query):
    with torch.no_grad():
        return query.embed_texts(query.preprocess.texts(TEXTS)).numpy()


@pytest.mark.parametrize("to", ["sentence-transformers", "onnx"])
@pytest.mark.parametrize(("name", "size"), CASES)
def test_the_code_of_the_card_gives_equal_vectors_of_texts(name, size, to, tmp_path):
    query, out = save_query(name, size, tmp_path), tmp_path / "out"
    words = ("export", tmp_path / "q", "--to", to, "--out", out)
    if to == "sentence-transformers" and name in ("late", "SigLIP 2"):
        assert "is a query encoder that is not exported to sentence-transformers" in error_of(*words)
        return
    document = document_of(*words)
    assert document["checks"][0]["lowest_cosine"] > 0.9999
    # It has no images that could be compared.
    assert document["checked_on"] == "32 texts of the built-in corpus"
    card = (out / "README.md").read_text(encoding="utf-8")
    assert f"library_name: {to}" in card
    assert str(query.space.teacher)[:12] in card
    namespace = {}
    exec(script_of(out), namespace)
    np.testing.assert_allclose(namespace.get("vectors", namespace["texts"]), vectors_of(query), atol=1e-5)


def test_an_export_needs_no_dcdctl(tmp_path):
    scripts = []
    query = save_query("dual", "static", tmp_path)
    for to in ("sentence-transformers", "onnx"):
        document_of("export", tmp_path / "q", "--to", to, "--out", tmp_path / to)
        scripts.append(tmp_path / f"{to}.py")
        scripts[-1].write_text(script_of(tmp_path / to), encoding="utf-8")
    printed, _ = run_forked(SCRIPT, *scripts, imported=LIBRARIES)
    for line in printed.splitlines():
        np.testing.assert_allclose(json.loads(line), vectors_of(query), atol=1e-5)


def test_a_format_with_images_names_those_of_texts(tmp_path):
    save_query("dual", "static", tmp_path)
    message = error_of("export", tmp_path / "q", "--to", "transformers", "--out", tmp_path / "out")
    assert "embeds texts alone, and --to transformers holds images too" in message
    assert "--to sentence-transformers or onnx" in message
