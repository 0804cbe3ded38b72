"""What `dcdctl index` and `--sync` take for a library of photos, beside a plain loop of decode and forward.

    python benchmarks/photo_library.py --photos Flicker8k_Dataset.zip
    python benchmarks/photo_library.py --photos FOLDER --count 250 --model clip-b32 --rounds 3

The model has the size of a published one and random weights: the time does not depend on them. Both sides run in
processes of their own, in turns. The plain loop is what a person would write: Pillow, the image processor and the model
of transformers, in the same batches. Its time is that of the loop alone, without imports and loading; the time of
`dcdctl index` is that of the whole command. Ends with one JSON line.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path
from typing import Any

from reports import facts, say, table

BATCH = 32
VIT_B32 = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "patch_size": 32,
}
TEXT_B = {"num_hidden_layers": 12, "bos_token_id": 2, "eos_token_id": 3, "pad_token_id": 0}
PLAIN = """
import sys, time
from pathlib import Path
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModel
model, processor = AutoModel.from_pretrained(sys.argv[1]).eval(), AutoImageProcessor.from_pretrained(sys.argv[1])
files = sorted(Path(sys.argv[2]).iterdir())
started = time.perf_counter()
with torch.inference_mode():
    for first in range(0, len(files), int(sys.argv[3])):
        images = [Image.open(file).convert("RGB") for file in files[first : first + int(sys.argv[3])]]
        model.get_image_features(**processor(images=images, return_tensors="pt"))
print(time.perf_counter() - started)
"""


def make_model(name: str, folder: Path) -> None:
    """A folder of transformers with random weights."""
    import transformers

    from dcdctl.core import models

    if name == "siglip2-b32-256":
        text = {**TEXT_B, "hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12}
        text |= {"vocab_size": 256_000, "max_position_embeddings": 64, "projection_size": 768}
        config: Any = transformers.SiglipConfig(vision_config={**VIT_B32, "image_size": 256}, text_config=text)
        processor: Any = transformers.SiglipImageProcessorPil(size={"height": 256, "width": 256})
    else:
        text = {**TEXT_B, "hidden_size": 512, "intermediate_size": 2048, "num_attention_heads": 8}
        text |= {"vocab_size": 49_408, "max_position_embeddings": 77}
        config = transformers.CLIPConfig(vision_config={**VIT_B32, "image_size": 224}, text_config=text)
        processor = transformers.CLIPImageProcessorPil()
    transformers.AutoModel.from_config(config).save_pretrained(folder)
    models.word_piece(["a dog runs in the snow", "a child on a beach"] * 10, 120).save_pretrained(folder)
    processor.save_pretrained(folder)


def take_photos(source: Path, folder: Path, count: int) -> None:
    """The first photos of a folder or a zip."""
    folder.mkdir()
    if source.is_dir():
        for number, file in enumerate(sorted(source.rglob("*.jpg"))[:count]):
            shutil.copy(file, folder / f"{number:05d}.jpg")
        return
    with zipfile.ZipFile(source) as archive:
        names = [name for name in archive.namelist() if name.endswith(".jpg") and not name.startswith("__MACOSX")]
        for number, name in enumerate(names[:count]):
            (folder / f"{number:05d}.jpg").write_bytes(archive.read(name))


def timed(*words: object) -> tuple[float, str]:
    """The seconds of a command from start to end, and what it wrote."""
    started = time.perf_counter()
    done = subprocess.run([sys.executable, *map(str, words)], check=True, capture_output=True, text=True)
    return time.perf_counter() - started, done.stdout


def many_copies(photos: Path, folder: Path, count: int) -> None:
    """A library of distinct small files: a comment makes each photo another one."""
    folder.mkdir()
    originals = [file.read_bytes() for file in sorted(photos.iterdir())[:100]]
    for number in range(count):
        data = originals[number % len(originals)]
        comment = f"{number:06d}".encode()
        (folder / f"{number:06d}.jpg").write_bytes(
            data[:2] + b"\xff\xfe" + (len(comment) + 2).to_bytes(2, "big") + comment + data[2:]
        )


def measure_sync(model: Path, photos: Path, work: Path, count: int, rounds: int) -> dict[str, float]:
    """Seconds of `--sync` of a library in which nothing happened, in which photos were copied, and moved."""
    library, index = work / "library", work / "library.index"
    many_copies(photos, library, count)
    timed("-m", "dcdctl", "index", model, "--images", library, "--out", index)
    sync = ("-m", "dcdctl", "index", index, "--sync")
    nothing = statistics.median(timed(*sync)[0] for _ in range(rounds))
    for file in sorted(library.iterdir())[:100]:
        shutil.copy(file, library / f"copy-{file.name}")
    copied, _ = timed(*sync)
    (library / "moved").mkdir()
    for file in sorted(library.glob("copy-*")):
        file.rename(library / "moved" / file.name)
    moved, _ = timed(*sync)
    return {"nothing": nothing, "100 copied": copied, "100 moved": moved}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, required=True, help="Folder or zip of JPEGs.")
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--model", default="siglip2-b32-256", choices=("siglip2-b32-256", "clip-b32"))
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--sync", type=int, default=0, help="Photos of a library that --sync follows; 0 for none.")
    parser.add_argument("--small-model", help="Model that embeds the library of --sync.")
    args = parser.parse_args()
    measured: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as scratch:
        work = Path(scratch)
        take_photos(args.photos, work / "photos", args.count)
        if args.sync:
            model = Path(args.small_model or work / "model")
            if args.small_model is None:
                make_model(args.model, model)
            measured["sync_s"] = measure_sync(model, work / "photos", work, args.sync, 5)
            say(f"sync of {args.sync:,} photos: {measured['sync_s']}")
        else:
            make_model(args.model, work / "model")
            found: dict[str, list[float]] = {"loop": [], "index": []}
            for number in range(args.rounds):
                _, printed = timed("-c", PLAIN, work / "model", work / "photos", BATCH)
                found["loop"].append(float(printed))
                out = work / f"index-{number}"
                seconds, _ = timed("-m", "dcdctl", "index", work / "model", "--images", work / "photos", "--out", out)
                found["index"].append(seconds)
                shutil.rmtree(out)
                say(f"round {number + 1}: the loop {found['loop'][-1]:.1f} s, the command {seconds:.1f} s")
            lowest = {name: min(times) for name, times in found.items()}
            measured |= {**lowest, "share_beside": 1 - lowest["loop"] / lowest["index"]}
            rows = [[f"{lowest['loop']:.1f} s", f"{lowest['index']:.1f} s", f"{100 * measured['share_beside']:.0f} %"]]
            sys.stdout.write(table(["the plain loop", "the command", "of it beside the loop"], rows) + "\n")
    document = {**facts("transformers", "pillow"), "model": args.model, "photos": args.count, **measured}
    sys.stdout.write(json.dumps({**document, "cores": os.cpu_count()}) + "\n")


if __name__ == "__main__":
    main()
