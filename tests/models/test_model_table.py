"""The table of docs/models.md."""

from __future__ import annotations

import model_table


def test_the_table_of_models_is_made_from_the_models_that_load(tmp_path):
    found = model_table.PLACE.parts()[1]
    assert found == model_table.table(model_table.built(tmp_path)), "run python tests/support/model_table.py"
