"""Memory and time of one image from its file to pixels, in a fresh process each: photos of 12 to 200 megapixels, a
panorama, a large PNG, and files of your own.

    python benchmarks/decode_memory.py
    python benchmarks/decode_memory.py --cases jpeg-108 png-100 --files photo.heic photo.dng

`decode` is what an index reads, `check` what `dcdctl prepare` does, `pillow` plain Pillow without its limit of pixels.
The memory is the peak of the process (its resident set) above that before the file was read. A HEIC photo needs a
package with an encoder, so bring one. Ends with one JSON line.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from reports import commit, say

MADE = {
    "jpeg-12": ((4032, 3024), "JPEG", {}),
    "jpeg-48": ((8064, 6048), "JPEG", {}),
    "jpeg-108": ((12000, 9000), "JPEG", {}),
    "jpeg-200": ((16320, 12240), "JPEG", {}),
    "progressive-108": ((12000, 9000), "JPEG", {"progressive": True}),
    "panorama-120": ((30000, 4000), "JPEG", {}),
    "png-12": ((4032, 3024), "PNG", {"compress_level": 1}),
    "png-100": ((11500, 8700), "PNG", {"compress_level": 1}),
    "png-133": ((13300, 10000), "PNG", {"compress_level": 1}),
    "avif-12": ((4032, 3024), "AVIF", {"speed": 10}),
}
"""The size, the format, and how it is written."""
WAYS = ("decode", "check", "pillow")
MAKE = """
import sys
from PIL import Image
width, height, form, options = {}
# A gradient, so that no row is like another one.
image = Image.linear_gradient("L").resize((width, height))
Image.merge("RGB", [image, image.transpose(Image.Transpose.ROTATE_180), image]).save(sys.argv[1], form, **options)
"""
MEASURE = """
import io, json, resource, sys, time
from PIL import Image
from dcdctl.core.data import decode_image
from dcdctl.core.data.images import check_image

def pillow(data):
    with Image.open(io.BytesIO(data)) as image:
        return image.convert("RGB")

way, path = sys.argv[1:]
if way == "pillow":
    Image.MAX_IMAGE_PIXELS = None
    if path.endswith((".heic", ".HEIC", ".heif")):
        import pi_heif
        pi_heif.register_heif_opener()
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
data = open(path, "rb").read()
before, start = peak(), time.perf_counter()
try:
    {"decode": decode_image, "check": check_image, "pillow": pillow}[way](data)
    error = ""
except Exception as failure:
    error = str(failure)[:100]
print(json.dumps({"mb": round(peak() - before), "ms": round(1000 * (time.perf_counter() - start)), "error": error}))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="*", choices=MADE, default=list(MADE))
    parser.add_argument("--files", nargs="*", type=Path, default=[])
    arguments = parser.parse_args()
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in arguments.cases:
            (width, height), form, options = MADE[name]
            path = Path(folder) / f"{name}.{form.lower()}"
            script = MAKE.format(repr((width, height, form, options)))
            subprocess.run([sys.executable, "-c", script, str(path)], check=True)
            results[name] = _measured(path)
            path.unlink()
        for path in arguments.files:
            results[path.name] = _measured(path)
    say(json.dumps({"commit": commit(), "images": results}))


def _measured(path: Path) -> dict[str, object]:
    found: dict[str, object] = {"file_mb": round(path.stat().st_size / 2**20, 1)}
    for way in WAYS:
        done = subprocess.run(
            [sys.executable, "-c", MEASURE, way, str(path)], check=True, capture_output=True, text=True
        )
        result = json.loads(done.stdout)
        found[way] = result
        say(f"{path.name:20} {way:8} {result['mb']:6,} MB {result['ms']:7,} ms  {result['error']}")
    return found


if __name__ == "__main__":
    main()
