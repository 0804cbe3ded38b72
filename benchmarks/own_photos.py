"""The first photos of Flickr8k as a user has photos: a folder, and a CSV with the columns `image` and `caption`.

    python benchmarks/own_photos.py --karpathy dataset_flickr8k.json --images Flicker8k_Dataset.zip --num 1500 --out own

writes own/photos and own/captions.csv, the input of docs/tutorial-own-data.md.
"""

from __future__ import annotations

import argparse
import csv
import json
import shutil
import zipfile
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--karpathy", type=Path, required=True, help="dataset_flickr8k.json")
    parser.add_argument("--images", type=Path, required=True, help="zip of the photos")
    parser.add_argument("--num", type=int, required=True, help="number of photos")
    parser.add_argument("--out", type=Path, required=True, help="new folder")
    args = parser.parse_args()
    chosen = json.loads(args.karpathy.read_text())["images"][: args.num]
    shutil.rmtree(args.out, ignore_errors=True)
    (args.out / "photos").mkdir(parents=True)
    with zipfile.ZipFile(args.images) as photos:
        members = {Path(name).name: name for name in photos.namelist()}
        for image in chosen:
            (args.out / "photos" / image["filename"]).write_bytes(photos.read(members[image["filename"]]))
    with (args.out / "captions.csv").open("w", newline="", encoding="utf-8") as file:
        rows = [(image["filename"], sentence["raw"]) for image in chosen for sentence in image["sentences"]]
        csv.writer(file).writerows([("image", "caption"), *rows])


if __name__ == "__main__":
    main()
