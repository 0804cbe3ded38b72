"""Damaged files of every kind of artifact: reading gives an error that names a file, or the intact result."""

from __future__ import annotations

import json
from collections import Counter

import numpy as np
import pytest
from artifact_kinds import KINDS
from damage import NAMED, Artifact, as_new_process, count_outcomes, damages, replaced

from dcdctl.core.integrity import verify

pytestmark = pytest.mark.usefixtures("_duals_read_once")

TRIALS = 2
"""Damages of each kind for each file."""
MANY_TRIALS = 150


@pytest.fixture(scope="module", params=KINDS)
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Artifact]:
    """A kind and an artifact of it, whose files every trial leaves as they were."""
    return request.param, KINDS[request.param](tmp_path_factory.mktemp("made"))


@pytest.mark.parametrize("count", [TRIALS, pytest.param(MANY_TRIALS, marks=pytest.mark.slow)])
def test_a_damaged_file_is_named_or_harmless(made, count, record_property):
    kind, artifact = made
    outcomes = count_outcomes(artifact, np.random.default_rng(count), count)
    for (damage, outcome), number in sorted(outcomes.items()):
        record_property(f"{kind}, {damage}, {outcome}", number)  # shown by --junitxml FILE -o junit_family=legacy
    assert outcomes.total() > 2 * count * len(artifact.files)  # not 3, because zeros over zeros are no damage
    # Harmless are changed spaces in JSON.
    assert sum(number for (_, outcome), number in outcomes.items() if outcome == NAMED) > 0.9 * outcomes.total()


DOCUMENTS = {
    *(
        "corpus.json",
        "cache.json",
        "texts.json",
        "features.json",
        "plan.json",
        "index.json",
        "run.json",
        "dcdctl.json",
        "result.json",
    ),
    *("cascade.json", "bench.json", "metrics.json", "checkpoint.json", "mined.json"),
}
"""Files that no other file lists: they have a checksum of their content, which does not depend on spaces."""
NOT_ALONE = {"mined negatives", "model of an image index", "run in a model card", "evaluation in a comparison"}
"""Not recognized without the rest of the run, or the same folder as another kind."""


@pytest.mark.parametrize("count", [1, pytest.param(MANY_TRIALS // 3, marks=pytest.mark.slow)])
@pytest.mark.parametrize("made", [kind for kind in KINDS if kind not in NOT_ALONE], indirect=True)
def test_verify_finds_every_damage_of_a_listed_file(made, count, record_property):
    kind, artifact = made
    as_new_process()
    expected, trials = verify(artifact.folder).problems, Counter[str]()
    for damage, contents in damages(artifact, np.random.default_rng(count), count):
        intact = {path: path.read_bytes() for path in contents}
        with replaced(contents) as is_changed:
            if not is_changed:
                continue
            is_found = verify(artifact.folder).problems != expected
        if not is_found:
            assert all(
                path.name in DOCUMENTS and json.loads(contents[path]) == json.loads(intact[path]) for path in contents
            ), damage
        trials["found" if is_found else "harmless"] += 1
    for outcome, number in trials.items():
        record_property(f"verify of {kind}, {outcome}", number)
    assert verify(artifact.folder).problems == expected
