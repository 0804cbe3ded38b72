"""What a query costs: text towers of large models at their real widths, and query encoders, one query at a time and in
batches.

    python benchmarks/query_towers.py
    python benchmarks/query_towers.py --query-model runs/query-static --query-model runs/query-minilm
    python benchmarks/query_towers.py --towers clip-l static --batch 1 64

Weights are random, except for those of --query-model: the time does not depend on them. The queries have 12 words of
one token each, and the model of Qwen3-VL also reads the 30 tokens of its prompt. A tower runs in a process of its own,
in turns with the others, on --threads threads. ONNX Runtime is timed from the text, tokens included; torch from the
tokens alone, which is the smaller part of a large model.

Ends with one JSON line.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import dcdctl  # noqa: F401  # before torch: it sets how long torch's threads spin

# isort: split

import torch
import transformers
from reports import facts, say, table
from torch import nn

from dcdctl.core import models
from dcdctl.core.models.networks.query_text import QueryText
from dcdctl.core.models.query import QueryEncoder, QueryPreprocess

QUERY = "a small brown dog runs after a red ball on the beach"
PROMPT_TOKENS = 30
SECONDS = 4.0
"""How long each tower is measured in each way and batch."""


def bert(**sizes: int) -> nn.Module:
    return transformers.BertModel(transformers.BertConfig(**sizes))


def clip_l() -> nn.Module:
    sizes = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072}
    return transformers.CLIPTextModel(transformers.CLIPTextConfig(**sizes, projection_dim=768, vocab_size=49408))


def qwen_2b() -> nn.Module:
    # The text part of Qwen3-VL-2B-Instruct.
    config = transformers.Qwen3VLTextConfig(
        hidden_size=2048,
        num_hidden_layers=28,
        num_attention_heads=16,
        num_key_value_heads=8,
        head_dim=128,
        intermediate_size=6144,
        vocab_size=151936,
    )
    with torch.device("meta"):
        network = transformers.Qwen3VLTextModel(config)
    network = network.to_empty(device="cpu")
    with torch.no_grad():
        for tensor in (*network.parameters(), *network.buffers()):
            # Zeros and denormal numbers would be faster or slower than weights.
            tensor.fill_(0.01)
    return network


LARGE: dict[str, Callable[[], nn.Module]] = {"clip-l": clip_l, "qwen3-vl-2b": qwen_2b}
STUDENTS: dict[str, models.QuerySize] = {
    "static": models.QuerySize(hidden_size=384, num_layers=0),
    "1 layer": models.QuerySize(hidden_size=384, num_layers=1, num_heads=12),
    "6 layers, as MiniLM": models.QuerySize(hidden_size=384, num_layers=6, num_heads=12),
}


def encoder_of(tower: str) -> tuple[Any, int]:
    """A query encoder, and the tokens of a prompt that it reads beside a query."""
    if tower not in LARGE and tower not in STUDENTS:
        return models.load(tower, kind="query"), 0
    # Some 30,000 pieces, as in the vocabularies of BERT: the table of a static encoder is read row by row.
    tokenizer = models.word_piece([QUERY, *(f"word{number}" for number in range(30_000))], 30_522)
    space = models.QuerySpace(kind="dual", dim=768, logit_scale=100.0, teacher_name="random")
    if tower in STUDENTS:
        return models.new_query(space, STUDENTS[tower], tokenizer=tokenizer), 0
    preprocess = QueryPreprocess(tokenizer=tokenizer, max_text_len=77)
    encoder = QueryEncoder(QueryText(LARGE[tower](), space.dim), preprocess, space)
    return encoder, PROMPT_TOKENS * (tower == "qwen3-vl-2b")


def ms_per_query(work: Callable[[], object], batch: int) -> float:
    """The median time of a call, per query."""
    work()
    times: list[float] = []
    started = time.perf_counter()
    while len(times) < 3 or time.perf_counter() - started < SECONDS:
        before = time.perf_counter()
        work()
        times.append(time.perf_counter() - before)
    return 1000 * median(times) / batch


@torch.inference_mode()
def one(tower: str, args: argparse.Namespace) -> dict[str, Any]:
    """Measure a tower in this process."""
    torch.set_num_threads(args.threads)
    encoder, num_prompt = encoder_of(tower)
    size = sum(tensor.numel() for tensor in encoder.network.state_dict().values())
    result: dict[str, Any] = {"tower": tower, "million_numbers": size / 1e6}
    for batch in args.batch:
        texts = encoder.preprocess.texts([QUERY] * batch)
        if num_prompt:
            ids = texts.input_ids.new_full((batch, num_prompt), 7)
            joined = torch.cat([ids, texts.input_ids], dim=1)
            texts = models.TextBatch(joined, torch.ones_like(joined))
        result[f"torch_{batch}"] = ms_per_query(lambda texts=texts: encoder.embed_texts(texts), batch)
    if tower != "qwen3-vl-2b":  # 7 GB, above the limit of one file
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "text"
            models.export_text_tower(encoder, path)
            text_tower = models.TextTower.open(path, encoder.digest, args.threads)
            for batch in args.batch:
                queries = [QUERY] * batch
                result[f"onnx_{batch}"] = ms_per_query(
                    lambda queries=queries: text_tower.vectors(text_tower.tokenize(queries)[0]), batch
                )
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--towers", nargs="+", default=[*LARGE, *STUDENTS], choices=[*LARGE, *STUDENTS])
    parser.add_argument("--query-model", action="append", default=[], metavar="RUN")
    parser.add_argument("--batch", nargs="+", type=int, default=[1, 64])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--only", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.only is not None:
        sys.stdout.write(json.dumps(one(args.only, args)) + "\n")
        return
    towers = [*args.towers, *args.query_model]
    results: dict[str, list[dict[str, Any]]] = {tower: [] for tower in towers}
    for repeat in range(args.repeats):
        for tower in towers[repeat % len(towers) :] + towers[: repeat % len(towers)]:
            command = [sys.executable, __file__, "--threads", str(args.threads), "--only", tower]
            command += ["--batch", *map(str, args.batch)]
            process = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            results[tower].append(json.loads(process.stdout.splitlines()[-1]))
            say(f"{tower}: {results[tower][-1]}")
    ways = [f"{way}_{batch}" for way in ("torch", "onnx") for batch in args.batch]
    medians = {
        tower: {way: median(each[way] for each in rounds) for way in ways if way in rounds[0]}
        for tower, rounds in results.items()
    }
    columns = ["tower", "million numbers", *(way.replace("_", ", batch ") for way in ways)]
    rows = [
        [
            tower,
            f"{results[tower][0]['million_numbers']:.1f}",
            *(f"{times[way]:.3g} ms" if way in times else "-" for way in ways),
        ]
        for tower, times in medians.items()
    ]
    sys.stdout.write(table(columns, rows) + "\n")
    sys.stdout.write(json.dumps({**facts("transformers", "onnxruntime"), "results": results}) + "\n")


if __name__ == "__main__":
    main()
