"""What shorter and quantized vectors cost: rankings by prefixes and codes of a dual encoder's vectors, and a table of
them.

A gallery is ranked as an index would search it: by the codes alone, or by the codes first and then the best N again by
the float32 vectors. Queries are coded like the gallery.

Shape letters: I images, T texts (captions), P pairs, D numbers of a vector.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from dcdctl.core import artifacts, models
from dcdctl.core.artifacts import Document
from dcdctl.core.config import to_table
from dcdctl.core.data import Indices, Scores
from dcdctl.core.evaluation import ranks
from dcdctl.core.evaluation.cascade import Shortlists
from dcdctl.core.evaluation.document import VectorForm
from dcdctl.core.evaluation.measures import mean_measures, rsum
from dcdctl.core.evaluation.ranking import Rankings
from dcdctl.core.scoring import VectorKind, bytes_per_vector, decoded

PAIRS_AT_A_TIME = 16_384
"""Pairs whose float32 vectors are compared at a time."""
NUM_HALVINGS = 3
"""Widths of a table below the full one, each half of the one above, for a model that was trained without
`loss.dims`."""
RESCORED = 50
"""Candidates of a table that are scored again: as many as an index takes."""


def rank_vectors(image_ID: Tensor, text_TD: Tensor, image_T: Indices, form: VectorForm, *, num_top: int) -> Rankings:
    """The rankings of a gallery by vectors in a form; `image_T` is the image of each caption.

    A positive that ties with the last of the N candidates that are scored again counts as not among them.
    """
    if form.dims is not None:
        image_ID, text_TD = models.prefix_vectors(image_ID, form.dims), models.prefix_vectors(text_TD, form.dims)
    if not form.is_coded:
        return ranks.rank_embeddings(image_ID, text_TD, image_T, num_top=num_top)
    coded = []
    for vectors_ND in (image_ID, text_TD):
        coded.append(torch.from_numpy(decoded(vectors_ND.float().cpu().numpy(), form.kind)).to(vectors_ND.device))
    coded_ID, coded_TD = coded
    # Enough candidates for the result, and for all that are scored again.
    num_first = max(num_top, form.rescore or 0)
    first = ranks.rank_embeddings(coded_ID, coded_TD, image_T, num_top=num_first)
    if form.rescore is None:
        return first
    # As a cascade: both order a shortlist again and count ties in the same way.
    shortlists = Shortlists(first, image_T, form.rescore)
    image_P, text_P = (torch.from_numpy(ix).to(image_ID.device) for ix in shortlists.pairs)
    products = []
    for first_pair in range(0, len(image_P), PAIRS_AT_A_TIME):
        rows = slice(first_pair, first_pair + PAIRS_AT_A_TIME)
        products.append((image_ID[image_P[rows]].float() * text_TD[text_P[rows]].float()).sum(dim=1))
    cosines_P: Scores = torch.cat(products).cpu().numpy()
    return shortlists.rerank(cosines_P, form.rescore, num_top=num_top, margin=ranks.COSINE_ROUNDING)


def facts_of(ref: str, part: str) -> Document:
    """The recipe or the inputs in the run.json of a run; empty for other models, which do not say what they were
    trained on."""
    path = Path(ref, "run.json")
    return dict(artifacts.read_document(path, hint="restore it").get(part, {})) if path.exists() else {}


def forms_of(width: int, dims: Sequence[int]) -> list[VectorForm]:
    """The rows of a table: for each width, and last the full one, float32, int8, binary, and binary with candidates
    scored again.

    >>> [form.dims for form in forms_of(256, ())][::4]
    [32, 64, 128, 256]
    """
    if not dims:
        dims = [width >> halvings for halvings in range(NUM_HALVINGS + 1) if width >> halvings]
    kinds: list[VectorKind] = ["float32", "int8", "binary"]
    forms = []
    for each in sorted({*dims, width}):
        forms += [VectorForm(dims=each, kind=kind) for kind in kinds]
        forms.append(VectorForm(dims=each, kind="binary", rescore=RESCORED))
    return forms


def table_rows(forms: Sequence[VectorForm], ranked: Sequence[Sequence[Rankings]]) -> list[Document]:
    """The measures of each form of `forms_of` as plain values, recalls in percent, with the change of RSUM from float32
    at full width."""
    measured = {form: mean_measures(folds) for form, folds in zip(forms, ranked, strict=True)}
    full_rsum, rows = rsum(**measured[VectorForm(dims=forms[-1].dims)]), []
    for form, measures in measured.items():
        assert form.dims is not None
        total = rsum(**measures)
        rows.append(
            {
                **to_table(form),
                "bytes_per_image": bytes_per_vector(form.dims, form.kind),
                **measures,
                "rsum": total,
                "rsum_change": total - full_rsum,
            }
        )
    return rows
