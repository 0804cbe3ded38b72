"""What recipes and trainings refuse before anything is opened."""

from __future__ import annotations

from functools import partial

import pytest
import refusals
from refusals import Refusal

from dcdctl.core.errors import ConfigError
from dcdctl.core.training import load_recipe

CLIP = ("model.kind=dual", "model.layers=[]", "model.start=owner/clip")
DUAL = ("model.kind=dual", "model.start=new", "model.layers=[]")
RECIPES = {
    "vilt-flickr30k": [
        (["loss.alhpa=0.5"], r"loss\.alhpa; did you mean loss\.alpha\?"),
        (["loss.alpha=1.5"], r"loss\.alpha must lie in \[0, 1\], got 1\.5"),
        (["loss.alpha=nan"], r"loss\.alpha must .*, got nan"),
        (["loss.temperature=0"], r"loss\.temperature must lie in .*, got 0"),
        (["loss.temperature=inf"], r"loss\.temperature must .*, got inf; or auto"),
        (["loss.temperature=half"], r"loss\.temperature must be float, got 'half'"),
        (
            ["loss.temperature=auto", "loss.terms={ ranking = 1 }", "loss.weight_group=none"],
            r"loss\.temperature is auto.*loss\.terms has ranking; leave it out, or add a loss",
        ),
        (["loss.terms.dcdd=1"], r"loss\.terms has dcdd; known losses: dcd, "),
        (["loss.terms={}"], r"loss\.terms has nothing"),
        (["loss.terms.dcd=-1"], r"loss\.terms\.dcd must lie in .*, got -1"),
        (["loss.terms.kl=1"], "mixes losses on candidate lists with losses on all pairs"),
        (["loss.terms={ infonce = 1 }", "loss.label_smoothing=1"], r"loss\.label_smoothing must .*, got 1"),
        (["loss.label_smoothing=0.1"], r"loss\.label_smoothing is 0\.1.*; set it to 0.0, or add one of infonce"),
        (["loss.terms={ kl = 1 }", "loss.alpha=0.5", "loss.weight_group=none"], r"loss\.alpha is 0\.5.*set it to 0\.2"),
        (["loss.weight_group=0"], r"loss\.weight_group must lie in .*, got 0"),
        (["loss.weight_group=half"], r"loss\.weight_group must be int, got 'half'"),
        (
            ["loss.weight_group=8", "loss.terms={ mse = 1, ranking = 1 }"],
            r"loss\.weight_group is 8.*; set it to none, or add one of dcd, dcd-released, wsl-r",
        ),
        (["batch.size=1"], r"batch\.size must lie in .*, got 1"),
        (["batch.hard_negatives=64"], r"hard_negatives must be at most batch\.random_negatives, got 64 of 63"),
        (["batch.directions=[]"], r"batch\.directions must not be empty"),
        (['batch.directions=["text", "text"]'], r"batch\.directions must not repeat an item"),
        (['batch.directions=["sideways"]'], r"batch\.directions\[0\] must be one of text, image, got 'sideways'"),
        (["optimizer.lr=0"], r"optimizer\.lr must lie in .*, got 0"),
        (["optimizer.lr=nan"], r"optimizer\.lr must lie in .*, got nan"),
        (["optimizer.epochs=-1"], r"optimizer\.epochs must lie in"),
        (["optimizer.max_grad_norm=0"], r"optimizer\.max_grad_norm must lie in"),
        (["optimizer.warmup_share=2"], r"optimizer\.warmup_share must lie in"),
        (["optimizer.betas=[0.9]"], r"optimizer\.betas must have 2 items"),
        (["optimizer.weight_decay=-1"], r"optimizer\.weight_decay must lie in"),
        (["optimizer.steps=0"], r"optimizer\.steps must lie in"),
        (["candidates.kind=near"], r"candidates\.kind must be one of random, lexical, embedding, blocks"),
        (["seed=-1"], "seed must lie in"),
        (["model.hidden_size=0"], r"model\.hidden_size must lie in"),
        (["model.max_text_len=0"], r"model\.max_text_len must lie in"),
        (["model.dropout=1"], r"model\.dropout must lie in"),
        (["model.kind=dual", "model.start=new"], r"model\.layers is unknown in a dual model; .*; leave it"),
        (["model.kind=dual", "model.layers=[]"], r"cannot start from a fusion teacher; set model\.start to new"),
        (["model.vision=a/b", "model.start=new"], r"model\.vision and model\.text go together"),
        (["model.vision=a/b"], r"model\.vision is for model\.start new, and it is teacher; leave it out"),
        (["model.vision=a/b", "model.text=c/d"], r"model\.text is for model\.start new"),
    ],
    "tiny-student": [
        ([*CLIP, "model.trained=lora", "model.kind=fusion", "model.layers=[0]"], "unknown in a fusion model"),
        ([*CLIP, "model.trained=projections", "model.start=new"], "model.trained is for a dual encoder"),
        ([*CLIP, "model.trained=last-layers"], "model.trained_layers is not set"),
        ([*CLIP, "model.trained_layers=2"], "model.trained_layers is for model.trained last-layers, and it is all"),
        ([*CLIP, "model.lora_rank=2"], "model.lora_rank is for model.trained lora"),
        ([*CLIP, "model.vision_layers=[0]", "model.start=new"], "vision_layers is for a dual encoder"),
        ([*CLIP, "model.text_layers=[1, 0]"], "model.text_layers must ascend"),
        ([*CLIP, "model.average_with_start=0.5", "model.vision_layers=[0]"], "a model of fewer layers does not"),
        ([*CLIP, "model.average_with_start=0.5", "model.start=new"], "average_with_start is for a pretrained"),
        ([*CLIP, "model.average_with_start=1.5"], "must lie in"),
        ([*CLIP, "validation.at_start=true"], "validation.every is 0"),
        (["loss.dims=[8, 4]", *DUAL], "loss.dims must ascend"),
        (["loss.dims=[0, 4]", *DUAL], "loss.dims.* must lie in"),
        (["loss.dims=[4, 8]"], "loss.dims is for vectors, and a fusion model has none"),
        (["loss.dims=[4]", "loss.terms={ embedding-cosine = 1.0 }", *DUAL], "loss.dims is for losses of scores"),
        (["loss.terms={ embedding-cos = 1.0 }"], "embedding-cos"),
        (["validation.every=-1"], r"validation\.every must lie in"),
        (["validation.max_images=0"], r"validation\.max_images must lie in"),
        *(
            (
                ["validation.metric=agreement", *CLIP, field, "loss.terms={ infonce = 1.0 }"],
                r"count points of RSUM, and validation\.metric is agreement",
            )
            for field in ("validation.max_loss_elsewhere=3", "model.average_with_start=auto")
        ),
    ],
    "photos": [(["loss.terms=kl"], r"must be a table, got 'kl'; for example \{ kl = 1.0 \}$")],
    "vilt-flicker": [([], r"no recipe vilt-flicker; did you mean .*vilt-flickr30k.*\? `dcdctl")],
    "scenes-vilt": [([], "no recipe scenes-vilt, which is a model \\(`dcdctl models`\\); ")],
    "x": [([], "no recipe x; `dcdctl recipes` lists all")],
    "absent.toml": [([], r"absent\.toml does not exist; `dcdctl recipes` lists all")],
}
"""What --set changes in a recipe, and what the message names."""


def of_file(text: str, *sets: str):
    """Read a recipe of the user."""

    def read(tmp_path):
        (tmp_path / "own.toml").write_text(text)
        load_recipe(str(tmp_path / "own.toml"), sets)

    return read


FILES = [
    ("[loss]\nalpha = 7\n", [], r"own\.toml: loss\.alpha must lie in "),
    ("[loss]\nalpha = 0.5\n", ["loss.alpha=7"], r"^own\.toml with overrides: loss\.alpha must lie in .* got 7"),
    ("[gandidates]\n", [], r"own\.toml: unknown key gandidates; did you mean candidates\?"),
]
ROWS = [
    *(
        Refusal(f"{name} {' '.join(sets)}", partial(load_recipe, name, sets), ConfigError, names)
        for name, rows in RECIPES.items()
        for sets, names in rows
    ),
    *(Refusal(f"{text} {' '.join(sets)}", of_file(text, *sets), ConfigError, names) for text, sets, names in FILES),
]


@pytest.mark.parametrize("refusal", ROWS, ids=lambda row: row.what)
def test_a_refusal_names_what_is_wrong_and_what_would_be_right(refusal, request):
    refusals.check(refusal, request)
