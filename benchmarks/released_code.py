"""Rate at which teachers score pairs: dcdctl against the released code of METER and ViLT, on the same weights.

    git clone https://github.com/zdou0830/METER; git clone https://github.com/dandelin/ViLT
    python3.11 -m venv official; official/bin/pip install torch torchvision transformers==4.44.2 einops timm
    python benchmarks/released_code.py --meter METER --vilt ViLT --python official/bin/python [--captions 64]
        [--repeats 3] [--threads 1]

The released code runs in a process of its own, because it needs an old transformers; its two processes and dcdctl work
in turns. It gives full-size models random weights, which dcdctl loads by the names of the released checkpoints. One
image is scored against captions of 16 tokens, in float32 on a CPU: by dcdctl against N, by the released code against
the first 8 of them, padded to 40 tokens. Its time per pair does not depend on their number, because it shares nothing
between pairs.

- METER, as its `compute_irtr_recall` does it: the image is repeated for each caption of a batch, and `infer` runs
  everything on each pair.
- ViLT, as its `compute_irtr_recall` does it: the patches of the image are embedded once, and `infer` runs the
  transformer on each pair.
- dcdctl, as `cache-teacher` and `eval` do it: the image and each caption are encoded once, captions are not padded.

`--layers` are those of METER's fusion: 6 in the released teachers, 3 in DCD's students. The released files that a model
needs are imported alone, without Lightning and the modules for other tasks. Scores must agree within 1e-4 before rates
are printed. Ends with one JSON line.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

TEXT_LEN, PADDED_LEN = 16, 40
TEXT_BATCH = 64
"""Captions in one pass of the released evaluation."""
WIDTH, HEADS = 768, 12
SIZES = {"meter": (384, 384), "vilt": (384, 512)}
TOLERANCE = 1e-4


class Absent(ModuleType):
    """A module that scoring needs nothing of."""

    LightningModule = nn.Module

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return lambda *arguments, **settings: None


def released(clone: Path, package: str, module: str, absent: list[str]) -> Any:
    """A module of the released code, without running the `__init__` files of its packages."""
    import importlib

    for name, folder in ((package, clone / package), (f"{package}.modules", clone / package / "modules")):
        sys.modules[name] = ModuleType(name)
        sys.modules[name].__path__ = [str(folder)]
    for name in ["pytorch_lightning", *(f"{package}.modules.{part}" for part in absent)]:
        sys.modules[name] = Absent(name)
        if name != "pytorch_lightning":
            setattr(sys.modules[f"{package}.modules"], name.rpartition(".")[2], sys.modules[name])
    return importlib.import_module(f"{package}.modules.{module}")


def released_meter(clone: Path, layers: int) -> Any:
    """METER with CLIP ViT-B/16 at 384 px and RoBERTa-base, random weights."""
    from transformers import RobertaConfig, RobertaModel

    code = released(clone, "meter", "meter_module", ["swin_transformer", "swin_helpers", "objectives", "meter_utils"])
    clip = sys.modules["meter.modules.clip_model"].CLIP(512, 384, 12, WIDTH, 16, 77, 8, 512, 8, 12, 384)
    text = RobertaConfig(vocab_size=50265, max_position_embeddings=514, type_vocab_size=1, layer_norm_eps=1e-5)
    fusion = RobertaConfig(vocab_size=50265, hidden_size=WIDTH, num_attention_heads=HEADS, intermediate_size=4 * WIDTH)
    model = code.METERTransformerSS()
    model.is_clip, model.vit_model, model.text_transformer = True, clip, RobertaModel(text)
    model.cross_modal_text_transform, model.cross_modal_image_transform = (
        nn.Linear(WIDTH, WIDTH),
        nn.Linear(WIDTH, WIDTH),
    )
    model.token_type_embeddings = nn.Embedding(2, WIDTH)
    for side in ("text", "image"):
        setattr(
            model, f"cross_modal_{side}_layers", nn.ModuleList([code.BertCrossLayer(fusion) for _ in range(layers)])
        )
        setattr(model, f"cross_modal_{side}_pooler", code.heads.Pooler(WIDTH))
    model.rank_output = nn.Linear(2 * WIDTH, 1)
    return model


def released_vilt(clone: Path) -> Any:
    """ViLT-B/32, random weights."""
    from transformers.models.bert.modeling_bert import BertConfig, BertEmbeddings

    code = released(clone, "vilt", "vilt_module", ["objectives", "vilt_utils"])
    model = code.ViLTransformerSS()
    model.text_embeddings = BertEmbeddings(BertConfig(max_position_embeddings=PADDED_LEN))
    model.token_type_embeddings = nn.Embedding(2, WIDTH)
    model.transformer = code.vit.VisionTransformer(img_size=384, patch_size=32, config={"drop_rate": 0.0})
    model.pooler, model.rank_output = code.heads.Pooler(WIDTH), nn.Linear(WIDTH, 1)
    return model


def released_scores(model: Any, image: Tensor, texts: list[dict[str, Tensor]]) -> Tensor:
    """The scores of the image with all captions, as the released evaluation computes them."""
    scores = []
    if hasattr(model, "vit_model"):
        for batch in texts:
            repeated = image.repeat(len(batch["text_ids"]), 1, 1, 1)
            scores.append(model.rank_output(model.infer(batch, img=repeated)["cls_feats"])[:, 0])
        return torch.cat(scores)
    patches, mask, _, _ = model.transformer.visual_embed(image, max_image_len=-1, mask_it=False)
    for batch in texts:
        shape = (len(batch["text_ids"]), *patches.shape[1:])
        found = model.infer(batch, image_embeds=patches.expand(shape), image_masks=mask.expand(shape[:2]))
        scores.append(model.rank_output(found["cls_feats"])[:, 0])
    return torch.cat(scores)


def inputs(kind: str, captions: int) -> tuple[Tensor, Tensor]:
    """Pixels of one image, and token ids of the captions."""
    generator = torch.Generator().manual_seed(1)
    image = torch.randn(1, 3, *SIZES[kind], generator=generator)
    return image, torch.randint(5, 1000, (captions, TEXT_LEN), generator=generator)


@torch.inference_mode()
def serve_released(args: argparse.Namespace) -> None:
    """The process of the released code: write the weights, then score once per line of stdin."""
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    model = (
        released_meter(args.meter, args.layers[0]) if args.released == "meter" else released_vilt(args.vilt)
    ).eval()
    for name, parameter in model.named_parameters():
        if name.startswith("rank_output"):
            parameter.copy_(torch.randn(parameter.shape))  # so that scores differ between captions
    torch.save(model.state_dict(), args.weights)
    image, ids = inputs(args.released, args.captions)
    ids = ids[: args.released_captions]
    pad = 1 if args.released == "meter" else 0
    padded = nn.functional.pad(ids, (0, PADDED_LEN - TEXT_LEN), value=pad)
    mask = (torch.arange(PADDED_LEN) < TEXT_LEN).long().expand(len(ids), -1)
    texts = [
        {"text_ids": some, "text_masks": real, "text_labels": some}
        for some, real in zip(padded.split(TEXT_BATCH), mask.split(TEXT_BATCH), strict=True)
    ]
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    for _ in sys.stdin:
        started = time.perf_counter(), time.process_time()
        scores = released_scores(model, image, texts)
        spent = {"wall": time.perf_counter() - started[0], "processor": time.process_time() - started[1]}
        sys.stdout.write(json.dumps({**spent, "scores": scores.tolist()}) + "\n")
        sys.stdout.flush()


@contextmanager
def other_process(args: argparse.Namespace, kind: str, layers: int, weights: Path) -> Iterator[subprocess.Popen[str]]:
    """The process of the released code, once its weights are written."""
    command = [args.python, __file__, "--released", kind, "--weights", str(weights), "--layers", str(layers)]
    command += ["--meter", str(args.meter), "--vilt", str(args.vilt), "--captions", str(args.captions)]
    command += ["--released-captions", str(args.released_captions), "--threads", str(args.threads)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        if process.stdout.readline() != "ready\n":
            raise SystemExit(f"the released code of {kind} did not start; its messages are above")
        try:
            yield process
        finally:
            process.kill()


def scorer_of(kind: str, layers: int, weights: Path) -> Any:
    """Our scorer with the weights of the released model."""
    import scoring

    from dcdctl.core.models.official import meter, vilt

    state = torch.load(weights, weights_only=True)
    scorer = scoring.meter(layers) if kind == "meter" else scoring.vilt()
    renamed, _ = meter.to_network(state) if kind == "meter" else vilt.to_transformers(state)
    missing, _ = scorer.network.load_state_dict(renamed, strict=False)
    assert not missing, f"the released model has no {missing[:3]}"
    return scorer.eval()


@torch.inference_mode()
def compare(kind: str, layers: int, args: argparse.Namespace) -> dict[str, Any]:
    """Pairs per second of both, their ratio, and the largest difference of their scores."""
    from scoring import factorized
    from side_by_side import Spent, ratios, say, spent

    from dcdctl.core.devices import Compute

    name = f"METER, {layers} layers" if kind == "meter" else "ViLT-B/32"
    image, ids = inputs(kind, args.captions)
    compute, kept = Compute(batch_size=args.batch_size), dict[str, Tensor]()
    rounds: dict[str, list[Spent]] = {"dcdctl": [], "released": []}
    with (
        tempfile.TemporaryDirectory() as scratch,
        other_process(args, kind, layers, Path(scratch, "weights.pt")) as process,
    ):
        scorer = scorer_of(kind, layers, Path(scratch, "weights.pt"))
        factorized(scorer, image, ids[:2], compute)
        for _ in range(args.repeats):
            process.stdin.write("\n")
            process.stdin.flush()
            answer = json.loads(process.stdout.readline())
            share = args.captions / len(answer["scores"])
            rounds["released"].append(Spent(share * answer["wall"], share * answer["processor"]))
            rounds["dcdctl"].append(spent(lambda: kept.update(ours=factorized(scorer, image, ids, compute))))
            theirs, mine = (rounds[way][-1].processor for way in ("released", "dcdctl"))
            say(f"{name}: {theirs:.1f} s of processors for all captions, dcdctl {mine:.1f} s")
    official = torch.tensor(answer["scores"])
    difference = float((kept["ours"][: len(official)] - official).abs().max() / official.abs().max().clamp(min=1))
    if difference > TOLERANCE:
        raise SystemExit(
            f"{name}: scores differ by {difference:.1e}, ours are {kept['ours'].tolist()}, and theirs "
            f"{answer['scores']}"
        )
    rates = {way: args.captions / statistics.median(each.processor for each in times) for way, times in rounds.items()}
    return {
        "model": name,
        "pairs_per_processor_s": rates,
        "ratio": vars(ratios(rounds, "dcdctl")["released"]),
        "difference": difference,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--meter", type=Path, help="clone of METER")
    parser.add_argument("--vilt", type=Path, help="clone of ViLT")
    parser.add_argument("--python", help="Python of an environment with transformers 4")
    parser.add_argument("--layers", type=int, nargs="+", default=[6, 3])
    parser.add_argument("--captions", type=int, default=64)
    parser.add_argument(
        "--released-captions", type=int, default=8, help="captions that the released code scores, the first of all"
    )
    parser.add_argument("--batch-size", type=int, default=16, help="pairs in one pass of dcdctl")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--released", choices=SIZES, help=argparse.SUPPRESS)
    parser.add_argument("--weights", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.released:
        serve_released(args)
        return
    if args.python is None:
        parser.error("--python is needed: the released code does not run with the transformers of dcdctl")
    sys.path.insert(0, str(Path(__file__).parent))
    from side_by_side import facts, table

    torch.set_num_threads(args.threads)
    wanted = [("meter", layers) for layers in args.layers if args.meter] + ([("vilt", 0)] if args.vilt else [])
    results = [compare(kind, layers, args) for kind, layers in wanted]
    rows = [
        [
            each["model"],
            f"{each['pairs_per_processor_s']['dcdctl']:.2f}",
            f"{each['pairs_per_processor_s']['released']:.2f}",
            f"{each['ratio']['processor']:.2f}",
            f"{each['ratio']['wall']:.2f}",
            f"{each['difference']:.1e}",
        ]
        for each in results
    ]
    columns = [
        "model",
        "dcdctl, pairs per processor second",
        "released code",
        "ratio",
        "ratio by the clock",
        "largest difference of scores",
    ]
    sys.stdout.write(table(columns, rows) + "\n")
    sys.stdout.write(
        json.dumps(
            {
                **facts("transformers"),
                "captions": args.captions,
                "released_captions": args.released_captions,
                "models": results,
            }
        )
        + "\n"
    )


if __name__ == "__main__":
    main()
