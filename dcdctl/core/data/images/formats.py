"""The formats of image files: recognized by their content whatever their name, with what reads each; and the kinds of
files that are left out, with what a user may do about each."""

from __future__ import annotations

import importlib.util
import re
import struct
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from dcdctl.core.errors import install_command


@dataclass(frozen=True, kw_only=True, slots=True)
class Unread:
    """A kind of file that is left out."""

    kind: str
    one: str
    """What users call it."""
    many: str
    next_step: str
    """What reads such files, or what to do with them."""


NO_HEIF = Unread(kind="heif", one="HEIC photo", many="HEIC photos", next_step=f"`{install_command('heif')}` reads HEIC")
NO_RAW = Unread(
    kind="raw", one="RAW photo", many="RAW photos", next_step=f"`{install_command('raw')}` reads RAW previews"
)
NO_AVIF = Unread(
    kind="avif", one="AVIF image", many="AVIF images", next_step="`pip install -U 'pillow>=12'` reads AVIF"
)
NO_PREVIEW = Unread(
    kind="no-preview",
    one="RAW photo without a preview",
    many="RAW photos without a preview",
    next_step="export as JPEG",
)
LIVE_VIDEO = Unread(
    kind="live-video",
    one="video of a Live Photo",
    many="videos of Live Photos",
    next_step="nothing to do, the photo is a file of its own",
)
VIDEO = Unread(kind="video", one="video", many="videos", next_step="save frames as images")
OTHER_FORMAT = Unread(
    kind="other-format",
    one="image of another format",
    many="images of other formats",
    next_step="save as JPEG or PNG",
)
NOT_IMAGE = Unread(
    kind="not-image",
    one="file that is no image",
    many="files that are no images",
    next_step="nothing to do",
)
TOO_LARGE = Unread(
    kind="too-large", one="image that is too large", many="images that are too large", next_step="save smaller"
)
STRIP = Unread(kind="strip", one="strip that is too long", many="strips that are too long", next_step="cut into pieces")
DAMAGED = Unread(
    kind="damaged",
    one="damaged image",
    many="damaged images",
    next_step="copy again from the camera or a backup",
)
BROKEN_LINK = Unread(kind="broken-link", one="broken link", many="broken links", next_step="mend or remove")
LINK = Unread(
    kind="link",
    one="link out of the folder or to a folder",
    many="links out of the folder or to folders",
    next_step="copy or add what the link leads to",
)
CANNOT_OPEN = Unread(
    kind="unreadable",
    one="file or folder that cannot be opened",
    many="files or folders that cannot be opened",
    next_step="check permissions and names",
)
NEEDS_PACKAGE = (NO_HEIF, NO_RAW, NO_AVIF)
UNREAD = {
    unread.kind: unread
    for unread in (
        *(*NEEDS_PACKAGE, NO_PREVIEW, LIVE_VIDEO, VIDEO, OTHER_FORMAT),
        *(TOO_LARGE, STRIP, DAMAGED, BROKEN_LINK, LINK, CANNOT_OPEN, NOT_IMAGE),
    )
}
"""All kinds, in the order in which a summary names them: first those that a user can read by another step."""


class ImageError(ValueError):
    """An image file that cannot be used; the message says why, and `kind` is a key of `UNREAD`."""

    def __init__(self, message: str, unread: Unread = DAMAGED) -> None:
        super().__init__(message)
        self.kind = unread.kind


@dataclass(frozen=True, kw_only=True, slots=True)
class Format:
    """A format of image files."""

    name: str
    """Pillow's name for it."""
    signature: str
    """A regular expression of its first bytes; empty if those do not tell."""
    suffixes: tuple[str, ...]
    """Endings of names in small letters, for what is listed by name; the format itself is recognized by content."""
    media_type: str = ""
    """Empty if browsers do not show it: such files are converted for pages."""
    package: str = "pillow"
    """What reads it. Files that Pillow alone does not read are converted for corpora."""
    missing: Unread = NOT_IMAGE
    """What files are called if the package is not installed."""

    def starts(self, data: bytes) -> bool:
        """Whether these are the first bytes of such a file."""
        return bool(self.signature) and re.match(self.signature.encode("latin1"), data, re.DOTALL) is not None


JPEG = Format(name="JPEG", signature="\xff\xd8\xff", suffixes=("jpg", "jpeg"), media_type="image/jpeg")
TIFF = Format(
    name="TIFF",
    signature=r"II[*+]\0|MM\0[*+]",
    suffixes=("tif", "tiff"),
)
AVIF = Format(name="AVIF", signature="", suffixes=("avif",), media_type="image/avif", missing=NO_AVIF)
HEIF = Format(
    name="HEIF",
    signature="",
    suffixes=("heic", "heif", "hif"),
    package="pi_heif",
    missing=NO_HEIF,
)
RAW = Format(
    name="RAW",
    # Canon (CR2 is a TIFF with a mark, CR3 a film container), Fujifilm, Olympus, Panasonic, Sigma, Minolta. The others
    # are TIFFs with the tags of a sensor.
    signature=r"II\*\0.{4}CR|....ftypcrx |FUJIFILMCCD-RAW|IIR[OS]|MMOR|IIU\0|FOVb|\0MRM",
    suffixes=(
        *("dng", "cr2", "cr3", "nef", "nrw", "arw", "sr2", "srw", "orf", "raf", "rw2", "pef"),
        *("3fr", "iiq", "erf", "mrw", "x3f", "dcr", "kdc", "mef", "mos", "rwl"),
    ),
    package="rawpy",
    missing=NO_RAW,
)
FORMATS = {
    format.name: format
    for format in (
        JPEG,
        Format(name="PNG", signature=r"\x89PNG\r\n\x1a\n", suffixes=("png",), media_type="image/png"),
        Format(name="WEBP", signature="RIFF....WEBP", suffixes=("webp",), media_type="image/webp"),
        Format(name="GIF", signature="GIF8[79]a", suffixes=("gif",), media_type="image/gif"),
        Format(name="BMP", signature="", suffixes=("bmp",), media_type="image/bmp"),
        TIFF,
        Format(name="PPM", signature="", suffixes=("ppm", "pgm")),
        AVIF,
        HEIF,
        RAW,
    )
}
"""The formats that are read. Pillow knows more, and starts another program for some of them (EPS)."""
PILLOW_FORMATS = tuple(format.name for format in FORMATS.values() if format.package == "pillow")
IMAGE_SUFFIXES = tuple(suffix for format in FORMATS.values() for suffix in format.suffixes)
OTHER_SUFFIXES = ("jxl", "jp2", "j2k", "svg", "psd", "ico", "xcf", "eps")
VIDEO_SUFFIXES = ("mov", "mp4", "m4v", "avi", "mkv", "webm", "3gp", "mts", "m2ts", "mpg", "mpeg", "wmv", "flv")

_AVIF_BRANDS = {b"avif", b"avis"}
_HEIF_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1"}
_AUDIO_BRANDS = {b"M4A ", b"M4B ", b"M4P "}
_VIDEO = re.compile(
    # QuickTime before there was `ftyp`, AVI, Matroska and WebM, MPEG, Windows Media, Flash, and 188-byte packets.
    rb"....(?:moov|mdat|wide|pnot)|RIFF....AVI |\x1aE\xdf\xa3|\0\0\x01[\xb3\xba]|0&\xb2u\x8ef\xcf\x11|FLV\x01"
    rb"|(?:G.{187}){2}G|.{4}G.{191}G",
    re.DOTALL,
)
_OTHER_IMAGES = re.compile(
    # JPEG XL and JPEG 2000, in boxes and bare; Photoshop, icons, GIMP, PostScript, drawings.
    rb"\xff\x0a|\0\0\0\x0c(?:JXL|jP)  ?\r\n\x87\n|\xff\x4f\xff\x51|8BPS|\0\0\x01\0|gimp xcf|%!PS"
    rb"|\s*(?:<\?xml[^>]*>\s*)?(?:<!--.*?-->\s*)?<svg[\s>]",
    re.DOTALL,
)
HEAD_BYTES = 4096
"""Enough of a file to tell what kind it is, apart from a RAW photo in a TIFF."""
# Tags of TIFF directories.
_COMPRESSION, _PHOTOMETRIC, _SUB_DIRECTORIES, _DNG_VERSION = 0x0103, 0x0106, 0x014A, 0xC612
_SENSOR_PHOTOMETRICS = {32803, 34892}
"""Pixels of a color filter array, and of a sensor without one."""
_SENSOR_COMPRESSIONS = {262, 32767, 32770, 34713, 65000, 65535}
"""What Kodak, Sony, Samsung, Nikon and Pentax wrote."""
_MAX_DIRECTORIES = 16


def recognize(data: bytes) -> Format | None:
    """The format of a file by its content; None if it is none that is read, or one that only Pillow can tell."""
    if RAW.starts(data):
        return RAW
    if brands := _brands(data):
        if brands & _AVIF_BRANDS:
            return AVIF
        return HEIF if brands & _HEIF_BRANDS else None
    if TIFF.starts(data):
        return RAW if _has_sensor_data(data) else TIFF
    return next((format for format in FORMATS.values() if format.starts(data)), None)


def what_else(data: bytes) -> Unread:
    """What a file is that is no image that can be read."""
    head = data[:HEAD_BYTES]
    if recognize(head) is not None:
        return DAMAGED
    if is_video(head):
        return VIDEO
    return OTHER_FORMAT if _OTHER_IMAGES.match(head) else NOT_IMAGE


def is_video(head: bytes) -> bool:
    """Whether these are the first bytes of a video."""
    brands = _brands(head)
    if brands:
        return not brands & (_AVIF_BRANDS | _HEIF_BRANDS | _AUDIO_BRANDS) and not RAW.starts(head)
    return _VIDEO.match(head) is not None


def _brands(data: bytes) -> set[bytes]:
    """The brands of a file in boxes, as HEIF, AVIF, CR3 and MP4 are; empty for another file."""
    if data[4:8] != b"ftyp":
        return set()
    end = min(int.from_bytes(data[:4], "big"), len(data), HEAD_BYTES)
    # The minor version is between the main brand and the compatible ones.
    return {data[8:12]} | {data[at : at + 4] for at in range(16, end - 3, 4)}


def damage_of_boxes(data: bytes) -> str:
    """What is wrong with the boxes of a HEIF or AVIF file that its decoder does not refuse; empty if nothing is.

    libheif leaves the tiles of a file that was cut off empty, and pi-heif 1.4 ends the whole process if the type of an
    item is no text.
    """
    for kind, start, end in _boxes(data):
        if kind in (b"meta", b"mdat") and end > len(data):
            return "its data ends before its last pixels"
        if kind == b"meta" and not _has_readable_items(data[start:end]):
            return "the types of its items are no text"
    return ""


def _has_readable_items(meta: bytes) -> bool:
    for found in re.finditer(rb"infe", meta):
        size = int.from_bytes(meta[max(0, found.start() - 4) : found.start()], "big")
        # The version of the box, its flags, the number of the item and of its protection; then its type and names.
        number_bytes = 4 if meta[found.end() : found.end() + 1] == b"\3" else 2
        start = found.end() + 4 + number_bytes + 2
        try:
            meta[start : max(start + 4, found.start() - 4 + size)].decode()
        except UnicodeDecodeError:
            return False
    return True


def _boxes(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """The kind of each outer box, and where its content begins and ends; the last one may end behind the data."""
    position = 0
    while position + 8 <= len(data):
        size, start = int.from_bytes(data[position : position + 4], "big"), position + 8
        if size == 1:  # a large box
            size, start = int.from_bytes(data[position + 8 : position + 16], "big"), position + 16
        # A box of size 0 reaches to the end, and one that is too small is damaged.
        end = position + size if size >= 8 else len(data)
        yield data[position + 4 : position + 8], start, end
        position = end


def _has_sensor_data(data: bytes) -> bool:
    """Whether a TIFF is a RAW photo: DNG, NEF, ARW, PEF and others are, with a preview where a TIFF has its image."""
    order = "<" if data[:2] == b"II" else ">"
    places = [int.from_bytes(data[4:8], "little" if order == "<" else "big")]
    for number in range(_MAX_DIRECTORIES):
        if number == len(places):
            return False
        try:
            (count,) = struct.unpack_from(f"{order}H", data, places[number])
            for entry in range(places[number] + 2, places[number] + 2 + 12 * count, 12):
                tag, type_, length = struct.unpack_from(f"{order}HHI", data, entry)
                (value,) = struct.unpack_from(f"{order}{'H' if type_ == 3 else 'I'}", data, entry + 8)
                if tag == _DNG_VERSION or (tag == _PHOTOMETRIC and value in _SENSOR_PHOTOMETRICS):
                    return True
                if tag == _COMPRESSION and value in _SENSOR_COMPRESSIONS:
                    return True
                if tag == _SUB_DIRECTORIES:
                    num = min(length, _MAX_DIRECTORIES)
                    places += [value] if length == 1 else struct.unpack_from(f"{order}{num}I", data, value)
        except struct.error:  # it leads out of the file
            continue
    return False


def is_read_now(kind: str) -> bool:
    """Whether files of a kind that lacked a package would be read, because it is installed by now."""
    packages = {format.missing.kind: format.package for format in FORMATS.values() if format.package != "pillow"}
    return kind in packages and importlib.util.find_spec(packages[kind]) is not None


def kind_of(error: Exception, path: Path) -> str:
    """The kind of a file that could not be read, by the error and by its name: a damaged file may only be known as an
    image by its name, and the video of a Live Photo only by the photo beside it."""
    kind = str(getattr(error, "kind", CANNOT_OPEN.kind))
    if kind == NOT_IMAGE.kind and suffix_of(path.name) in IMAGE_SUFFIXES:
        return DAMAGED.kind
    photos = [path.with_name(name) for name in _photos_of(path.name) if name != path.name]
    if kind == VIDEO.kind and any(photo.exists() for photo in photos):
        return LIVE_VIDEO.kind
    return kind


def kind_of_name(name: str, names: Collection[str]) -> str | None:
    """The kind of a file whose name is not that of an image, as far as the name tells; None for an image. `names` are
    all files."""
    suffix = suffix_of(name)
    if suffix in IMAGE_SUFFIXES:
        return None
    if suffix in OTHER_SUFFIXES:
        return OTHER_FORMAT.kind
    if suffix not in VIDEO_SUFFIXES:
        return NOT_IMAGE.kind
    return LIVE_VIDEO.kind if any(photo in names for photo in _photos_of(name)) else VIDEO.kind


def suffix_of(name: str) -> str:
    """What follows the last point of a name, in small letters.

    >>> suffix_of("100APPLE/IMG_1.HEIC")
    'heic'
    """
    return name.rpartition(".")[2].lower()


def _photos_of(video: str) -> list[str]:
    """The names that the photo of a Live Photo may have beside its video."""
    suffixes = (*HEIF.suffixes, *JPEG.suffixes)
    return [f"{video.rpartition('.')[0]}.{ending}" for each in suffixes for ending in (each, each.upper())]


def count_kinds(kinds: Iterable[str]) -> dict[str, int]:
    """How many files of each kind were left out, in the order of `UNREAD`."""
    counts = Counter(kinds)
    known = {kind: counts.pop(kind) for kind in UNREAD if kind in counts}
    return known | counts


def left_out_lines(counts: Mapping[str, int]) -> list[str]:
    """A line for each kind of file that was left out: how many, and what to do next.

    >>> left_out_lines({"heif": 18})
    ["left out: 18 HEIC photos: `pip install 'pi-heif>=1.0'` reads HEIC"]
    >>> left_out_lines({"unreadable": 1})
    ['left out: 1 file or folder that cannot be opened: check permissions and names']
    """
    lines = []
    for kind, count in counts.items():
        unread = UNREAD.get(kind, CANNOT_OPEN)
        lines.append(f"left out: {count:,} {unread.one if count == 1 else unread.many}: {unread.next_step}")
    return lines
