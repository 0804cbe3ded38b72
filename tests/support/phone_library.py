"""A library of photos as phones and a computer leave it: 185 files of every format, turned, edited, copied, renamed,
linked, broken, and much that is no photo. `python tests/support/phone_library.py FOLDER` writes it for a look by hand.
"""

from __future__ import annotations

import io
import sys
import unicodedata
from collections import Counter
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from functools import cache
from pathlib import Path

import numpy as np
from heif_files import SIZE as HEIC_SIZE
from heif_files import heic
from PIL import Image
from PIL.ExifTags import GPS, IFD, Base
from raw_files import dng

SIZE = 200, 150
HIDDEN = "hidden"
"""The kind of files that nobody mentions."""
BERLIN, PARIS, RIO, SYDNEY = (52.52, 13.405), (48.8567, 2.3508), (-22.9, -43.2), (-33.8568, 151.2153)
CAMERAS = (("Apple", "iPhone X"), ("samsung", "SM-G991B"), ("Canon", "Canon EOS 80D"), ("Google", "Pixel 7"))
VIDEO = b"\0\0\0\x14ftypqt  \0\0\0\0qt  \0\0\0\x08mdat"


@dataclass(frozen=True, kw_only=True)
class PhoneFile:
    """A file of the library, and what is expected of it."""

    name: str
    what: str
    kind: str | None = None
    """Why it is left out; None if it is read."""
    size: tuple[int, int] | None = None
    """Of the upright image."""
    taken: datetime | None = None
    camera: str | None = None
    place: tuple[float, float] | None = None
    same_as: str | None = None
    """The file of which it is a copy, byte by byte."""
    like: str | None = None
    """The file of which it is a smaller one, saved again."""


@dataclass
class PhoneLibrary:
    """A library on a disk."""

    folder: Path
    files: dict[str, PhoneFile] = field(default_factory=dict)

    @property
    def read(self) -> dict[str, PhoneFile]:
        """The files that hold an image that can be read."""
        return {name: file for name, file in self.files.items() if file.kind is None}

    @property
    def left_out(self) -> dict[str, str]:
        """The kind of each other file, without hidden ones."""
        return {name: file.kind for name, file in self.files.items() if file.kind not in (None, HIDDEN)}

    @property
    def counts(self) -> dict[str, int]:
        """How many files of each kind are left out."""
        return dict(Counter(self.left_out.values()))

    def add(self, name: str, data: bytes, what: str, **facts) -> None:
        """Write a file."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        self.files[name] = PhoneFile(name=name, what=what, **facts)

    def copy(self, name: str, copied: str) -> None:
        """Write a copy of a file."""
        data, file = (self.folder / copied).read_bytes(), self.files[copied]
        self.add(name, data, "a copy")
        self.files[name] = replace(file, name=name, what="a copy", same_as=copied)

    def link(self, name: str, target: str | Path, what: str, **facts) -> None:
        """Write a link."""
        (self.folder / name).symlink_to(target)
        self.files[name] = PhoneFile(name=name, what=what, **facts)


def scene(seed: int, size: tuple[int, int] = SIZE) -> Image.Image:
    """A smooth image, different from that of every other seed, also in its difference hash."""
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)


def exif_of(*, taken=None, camera=None, place=None, orientation=None, date=None) -> bytes:
    """EXIF data as a camera writes them; `date` is a text in place of a time."""
    exif = Image.Exif()
    if camera is not None:
        exif.update({Base.Make: camera[0], Base.Model: camera[1]})
    if orientation is not None:
        exif[Base.Orientation] = orientation
    if taken is not None or date is not None:
        exif[IFD.Exif] = {Base.DateTimeOriginal: date or f"{taken:%Y:%m:%d %H:%M:%S}"}
    if place is not None:
        exif[IFD.GPSInfo] = {
            GPS.GPSLatitudeRef: "S" if place[0] < 0 else "N",
            GPS.GPSLatitude: (abs(place[0]), 0.0, 0.0),
            GPS.GPSLongitudeRef: "W" if place[1] < 0 else "E",
            GPS.GPSLongitude: (abs(place[1]), 0.0, 0.0),
        }
    return exif.tobytes()


def encoded(image: Image.Image, form: str = "JPEG", **options) -> bytes:
    stream = io.BytesIO()
    image.save(stream, form, **options)
    return stream.getvalue()


@cache
def plain_jpeg(width: int, height: int) -> bytes:
    """A JPEG of one brightness: few bytes for many pixels."""
    return encoded(Image.new("L", (width, height), 90), quality=30)


def camera_name(camera: tuple[str, str]) -> str:
    """As the column `camera` has it."""
    make, model = camera
    return model if model.startswith(make) else f"{make} {model}"


def make_library(folder: Path) -> PhoneLibrary:
    """Write the library into a folder, and next to it one photo that a link leads to."""
    library = PhoneLibrary(folder)
    folder.mkdir(parents=True, exist_ok=True)
    _add_cameras(library)
    _add_phones(library)
    _add_raw(library)
    _add_copies(library)
    _add_messages_and_screenshots(library)
    _add_odd_names(library)
    _add_large(library)
    _add_other_files(library)
    _add_links(library)
    return library


def _add_cameras(library: PhoneLibrary) -> None:
    """48 photos of four cameras over six years, each second with its place; and one in each of the eight turns."""
    for number in range(48):
        camera, place = CAMERAS[number % 4], (BERLIN, PARIS, RIO, SYDNEY)[number // 2 % 4] if number % 2 else None
        taken = datetime(2018, 1, 15, 10) + timedelta(days=45 * number, minutes=number)
        exif = exif_of(taken=taken, camera=camera, place=place)
        facts = {"taken": taken, "camera": camera_name(camera), "place": place, "size": SIZE}
        library.add(f"DCIM/100APPLE/IMG_{number:04}.JPG", encoded(scene(number), exif=exif), "a photo", **facts)
    for orientation in range(1, 9):
        taken = datetime(2020, 2, orientation, 23, 59)
        exif = exif_of(taken=taken, camera=CAMERAS[0], orientation=orientation)
        size = SIZE if orientation < 5 else SIZE[::-1]
        facts = {"taken": taken, "camera": camera_name(CAMERAS[0]), "size": size}
        data = encoded(scene(100 + orientation), exif=exif)
        library.add(f"DCIM/turned/IMG_{orientation}.jpg", data, f"turned, orientation {orientation}", **facts)


def _add_phones(library: PhoneLibrary) -> None:
    """HEIC photos, some of them Live Photos, AVIF, edited ones, and a motion photo."""
    camera = {"camera": "Apple iPhone 12 mini", "place": (52.52, 13.405), "size": HEIC_SIZE}
    for number in range(20):
        name = ("heic_a.heic", "heic_b.heic", "heic_turned.heic")[number % 3]
        taken = datetime(2021, 6, 1, 12, 34, number)
        data = heic(name, taken=f"{taken:%Y:%m:%d %H:%M:%S}")
        library.add(f"DCIM/101APPLE/IMG_{2000 + number}.HEIC", data, "a HEIC photo", taken=taken, **camera)
        if number < 5:
            video = f"DCIM/101APPLE/IMG_{2000 + number}.MOV"
            library.add(video, VIDEO + bytes([number]), "the video of a Live Photo", kind="live-video")
    for number in range(6):
        taken = datetime(2023, 3, 4, 5, 6, number)
        data = encoded(scene(200 + number), "AVIF", exif=exif_of(taken=taken, camera=CAMERAS[3]), speed=10)
        facts = {"taken": taken, "camera": camera_name(CAMERAS[3]), "size": SIZE}
        library.add(f"Download/image-{number}.avif", data, "an AVIF image", **facts)
    for number in range(6):
        original = library.files[f"DCIM/100APPLE/IMG_{number:04}.JPG"]
        brighter = scene(number).point(lambda value: min(255, value + 40)).convert("L").convert("RGB")
        exif = exif_of(taken=original.taken, camera=CAMERAS[number % 4])
        facts = {"taken": original.taken, "camera": original.camera, "size": SIZE}
        library.add(f"DCIM/100APPLE/IMG_E{number:04}.JPG", encoded(brighter, exif=exif), "an edited photo", **facts)
        library.add(f"DCIM/100APPLE/IMG_{number:04}.AAE", b"<?xml version='1.0'?><plist/>", "edits", kind="not-image")
    taken = datetime(2023, 1, 1, 12)
    data = encoded(scene(300), exif=exif_of(taken=taken, camera=CAMERAS[3])) + VIDEO
    facts = {"taken": taken, "camera": camera_name(CAMERAS[3]), "size": SIZE}
    library.add("DCIM/Camera/PXL_20230101_120000.MP.jpg", data, "a motion photo: a video follows the JPEG", **facts)
    library.add(
        "DCIM/101APPLE/IMG_2100.JPG",
        heic(),
        "a HEIC photo named as a JPEG",
        taken=datetime(2021, 6, 1, 12, 34, 56),
        **camera,
    )
    library.add("DCIM/101APPLE/IMG_2101.HEIC", encoded(scene(301)), "a JPEG named as a HEIC photo", size=SIZE)


def _add_raw(library: PhoneLibrary) -> None:
    for number, orientation in enumerate((1, 3, 6, 8, 1)):
        taken = datetime(2022, 7, 8, 9, 10, number)
        data = dng(scene(400 + number), orientation=orientation, taken=f"{taken:%Y:%m:%d %H:%M:%S}")
        facts = {"taken": taken, "camera": "Apple iPhone 13 Pro", "size": SIZE[::-1] if orientation > 4 else SIZE}
        library.add(f"Camera/RAW/DSC_{number}.DNG", data, f"a RAW photo, orientation {orientation}", **facts)
    library.add("Camera/RAW/DSC_9.DNG", dng(preview=b""), "a RAW photo without a preview", kind="no-preview")


def _add_copies(library: PhoneLibrary) -> None:
    """Copies of photos in a backup, and some of them smaller, without their EXIF data."""
    for number in range(10):
        library.copy(f"Backup of phone/IMG_{number:04}.JPG", f"DCIM/100APPLE/IMG_{number:04}.JPG")
    for number in range(2):
        library.copy(f"Backup of phone/IMG_{2000 + number}.HEIC", f"DCIM/101APPLE/IMG_{2000 + number}.HEIC")
    for number in range(10, 18):
        smaller = encoded(scene(number).resize((160, 120)), quality=70)
        original = f"DCIM/100APPLE/IMG_{number:04}.JPG"
        library.add(f"Small/IMG_{number:04}.jpg", smaller, "smaller, saved again", size=(160, 120), like=original)


def _add_messages_and_screenshots(library: PhoneLibrary) -> None:
    for number in range(12):
        name = f"WhatsApp Images/IMG-20220304-WA{number:04}.jpg"
        library.add(name, encoded(scene(500 + number), quality=60), "sent, without EXIF data", size=SIZE)
    for number in range(8):
        shot = Image.new("RGB", (90, 195), "white")
        shot.paste(scene(600 + number, (80, 60)), (5, 10 + 9 * number))
        name = f"Screenshots/Screenshot 2023-05-0{number + 1} at 07.08.09.png"
        library.add(name, encoded(shot, "PNG"), "a screenshot", size=(90, 195))


def _add_odd_names(library: PhoneLibrary) -> None:
    accented = "Caf\N{LATIN SMALL LETTER E WITH ACUTE}"
    names = {
        "Urlaub \N{BEACH WITH UMBRELLA}\N{VARIATION SELECTOR-16}/\N{DOG FACE}.jpg": "emoji",
        unicodedata.normalize("NFC", f"{accented}.jpg"): "an accent as one letter",
        unicodedata.normalize("NFD", f"{accented} (from a Mac).jpg"): "an accent as a letter and a mark",
        "my dog's photo (1).jpg": "a quote, spaces and parentheses",
        'a "quoted" name; $HOME & more.jpg': "what a shell reads",
        " leading and trailing .jpg": "spaces around",
        "日本/東京.jpg": "other letters",
        "photo": "no ending",
        "100%.JPEG": "a sign of URLs",
        "[2019] *.jpg": "signs of patterns",
    }
    for number, (name, what) in enumerate(names.items()):
        library.add(name, encoded(scene(700 + number)), f"a name with {what}", size=SIZE)
    dates = {
        "2021-05-06 07:08:09": datetime(2021, 5, 6, 7, 8, 9),
        "2021/05/06T07:08:09+02:00": datetime(2021, 5, 6, 7, 8, 9),
        "0000:00:00 00:00:00": None,
        _wide("2021:05:06 07:08:09"): None,
        "yesterday": None,
    }
    for number, (date, taken) in enumerate(dates.items()):
        data = encoded(scene(720 + number), exif=exif_of(date=date))
        library.add(f"Scans/scan {number}.jpg", data, f"a date as {date!r}", size=SIZE, taken=taken)


def _wide(text: str) -> str:
    """A text with the wide digits of East Asian keyboards."""
    return "".join(chr(ord(letter) + 0xFEE0) if letter.isdigit() else letter for letter in text)


def _add_large(library: PhoneLibrary) -> None:
    library.add("DCIM/Camera/108MP.jpg", plain_jpeg(12000, 9000), "108 megapixels", size=(12000, 9000))
    library.add("DCIM/Camera/PANO.jpg", plain_jpeg(30000, 2000), "a panorama", size=(30000, 2000))
    library.add("DCIM/Camera/strip.png", encoded(Image.new("L", (4100, 20)), "PNG"), "a long strip", kind="strip")


def _add_other_files(library: PhoneLibrary) -> None:
    whole = encoded(scene(800))
    others = {
        "DCIM/100APPLE/IMG_0900.JPG": (whole[: len(whole) // 2], "half of a JPEG", "damaged"),
        "DCIM/100APPLE/IMG_0901.JPG": (b"", "an empty JPEG", "damaged"),
        "DCIM/100APPLE/IMG_0902.JPG": (bytes(5000), "zeros in place of a JPEG", "damaged"),
        "DCIM/101APPLE/IMG_2900.HEIC": (heic()[:500], "a part of a HEIC photo", "damaged"),
        "DCIM/Camera/VID_20210704.mp4": (VIDEO.replace(b"qt  ", b"mp42"), "a video", "video"),
        "DCIM/100APPLE/IMG_0950.MOV": (VIDEO, "a video", "video"),
        "notes.txt": (b"buy milk", "a text", "not-image"),
        "invoice.pdf": (b"%PDF-1.7\n", "a document", "not-image"),
        "Thumbs.db": (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "of Windows", "not-image"),
        "DCIM/desktop.ini": (b"[.ShellClassInfo]", "of Windows", "not-image"),
        "logo.svg": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "a drawing", "other-format"),
        "Download/new.jxl": (b"\xff\x0a" + bytes(60), "a JPEG XL", "other-format"),
        ".DS_Store": (b"\0\0\0\1Bud1", "of macOS", HIDDEN),
        "DCIM/._IMG_0001.JPG": (b"\0\5\x16\7", "of macOS", HIDDEN),
        ".thumbnails/1.jpg": (whole, "a thumbnail", HIDDEN),
    }
    for name, (data, what, kind) in others.items():
        library.add(name, data, what, kind=kind)


def _add_links(library: PhoneLibrary) -> None:
    outside = library.folder.parent / f"{library.folder.name} elsewhere"
    outside.mkdir(exist_ok=True)
    (outside / "photo.jpg").write_bytes(encoded(scene(900)))
    original = library.files["DCIM/100APPLE/IMG_0000.JPG"]
    library.link("favorite.jpg", original.name, "a link")
    library.files["favorite.jpg"] = replace(original, name="favorite.jpg", what="a link", same_as=original.name)
    library.link("gone.jpg", "DCIM/nowhere.jpg", "a link to nothing", kind="broken-link")
    library.link("outside.jpg", outside / "photo.jpg", "a link out of the folder", kind="link")
    library.link("Album", "DCIM/100APPLE", "a link to a folder", kind="link")


if __name__ == "__main__":
    made = make_library(Path(sys.argv[1]))
    print(f"{len(made.files)} files, {len(made.read)} images, left out: {made.counts}")  # noqa: T201
