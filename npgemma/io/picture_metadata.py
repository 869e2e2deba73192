"""Metadata that cannot be read must not cost a picture: container formats say which segments are not pixels.

Each walk follows the rules of its format, and gives the segments of a file with what each is: PIXELS for everything
that the pixels depend on, EXIF and XMP for what may say how the picture is turned, OTHER for the rest.
"""

import io
import struct
import zlib
from collections.abc import Callable, Container, Iterator
from typing import IO

PIXELS, EXIF, XMP, OTHER = "pixels", "exif", "xmp", "other"
# What is kept besides the pixels, tried in this order where a whole file cannot be read.
KEPT = ((EXIF, XMP), (EXIF,), (XMP,), ())

Segments = Iterator[tuple[str, bytes]]

TIFF = (b"II*\0", b"MM\0*")
PNG = b"\x89PNG\r\n\x1a\n"
PIECE = 1 << 20  # bytes that are read at once
PNG_PIXELS = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND")
WEBP_METADATA = {b"EXIF": (EXIF, 0x08), b"XMP ": (XMP, 0x04), b"ICCP": (OTHER, 0x20)}
# The tags of a TIFF that say where its pixels are and what they mean.
TIFF_PIXELS = {
    *(254, 255, 256, 257, 258, 259, 262, 266, 273, 277, 278, 279, 284, 292, 293, 317, 320, 322, 323, 324, 325),
    *(332, 333, 334, 336, 338, 339, 340, 341, 347, 512, 513, 514, 515, 517, 518, 519, 520, 521, 529, 530, 531, 532),
}
TIFF_METADATA = {EXIF: 274, XMP: 700}  # what turns it upright


def without_metadata(content: bytes) -> Iterator[bytes]:
    """A file's content with less and less metadata; nothing for formats that have no walk here."""
    last = content
    for kept in KEPT:
        found = strip(content, kept)
        if found not in (None, last):
            last = found
            yield found


def strip(content: bytes, kept: tuple[str, ...]) -> bytes | None:
    """The pixels of a file and the `kept` kinds of metadata; None if its format has no walk."""
    if content.startswith(TIFF):
        return strip_tiff(content, kept)
    for magic, walk in WALKS.items():
        if content.startswith(magic):
            whole = b"".join(data for kind, data in walk(content) if kind == PIXELS or kind in kept)
            return webp_header(whole, kept) if magic == b"RIFF" else whole
    return None


def png_segments(content: bytes) -> Segments:
    """A PNG's chunks: length, name, data, CRC. A lower-case first letter means that a decoder may leave it out."""
    yield PIXELS, PNG
    at = len(PNG)
    while at + 8 <= len(content):
        length, name = struct.unpack_from(">L4s", content, at)
        if not name.isalpha():
            return
        chunk = content[at : at + 12 + length]
        at += 12 + length
        if name in PNG_PIXELS or not name[0] & 0x20:
            yield PIXELS, chunk
        elif name == b"eXIf" or chunk[8:].startswith(b"Raw profile type exif\0"):
            yield EXIF, chunk
        else:
            yield XMP if chunk[8:].startswith(b"XML:com.adobe.xmp\0") else OTHER, chunk
        if name == b"IEND":
            return


def jpeg_segments(content: bytes) -> Segments:
    """A JPEG's segments up to its first scan, and the rest as one."""
    yield PIXELS, content[:2]
    at = 2
    while at + 4 <= len(content):
        start, marker, length = struct.unpack_from(">BBH", content, at)
        if start != 0xFF or marker in (0x00, 0xFF):  # bytes between segments, which decoders skip
            at += 1
            continue
        if marker == 0xDA:
            break
        segment = content[at : at + 2 + length]
        at += 2 + length
        yield jpeg_kind(marker, segment[4:]), segment
    yield PIXELS, content[at:]


def jpeg_kind(marker: int, data: bytes) -> str:
    """What a segment of a JPEG is. The decoder itself reads those of JFIF, if long enough, and Adobe: they say what
    the channels mean."""
    decoded = (marker == 0xE0 and data[:5] == b"JFIF\0" and len(data) >= 14) or (
        marker == 0xEE and data[:5] == b"Adobe"
    )
    if decoded or not (0xE0 <= marker <= 0xEF or marker == 0xFE):
        return PIXELS
    if marker == 0xE1:
        return EXIF if data.startswith(b"Exif\0\0") else XMP
    return OTHER


def webp_segments(content: bytes) -> Segments:
    """A WebP's chunks: name, length, data, and a zero byte after an odd length."""
    yield PIXELS, content[:12]
    at = 12
    while at + 8 <= len(content):
        name, length = struct.unpack_from("<4sL", content, at)
        end = at + 8 + length + length % 2
        yield WEBP_METADATA[name][0] if name in WEBP_METADATA else PIXELS, content[at:end]
        at = end


def webp_header(content: bytes, kept: tuple[str, ...]) -> bytes:
    """A WebP whose header states its new length, and the flags of the metadata that it still has."""
    raw = bytearray(content)
    raw[4:8] = struct.pack("<L", len(raw) - 8)
    if raw[12:16] == b"VP8X" and len(raw) > 20:
        raw[20] &= ~sum(flag for kind, flag in WEBP_METADATA.values() if kind not in kept)
    return bytes(raw)


def gif_segments(content: bytes) -> Segments:
    """A GIF's blocks. Comments, texts and extensions of applications are not pixels; a graphic control is."""
    (flags,) = content[10:11] or b"\0"
    at = 13 + (3 << (flags & 7) + 1 if flags & 0x80 else 0)
    yield PIXELS, content[:at]
    while content[at : at + 1] == b"\x21":
        end = at + 2
        while end < len(content) and content[end]:
            end += 1 + content[end]
        yield PIXELS if content[at + 1 : at + 2] == b"\xf9" else OTHER, content[at : end + 1]
        at = end + 1
    yield PIXELS, content[at:]


WALKS: dict[bytes, Callable[[bytes], Segments]] = {
    PNG: png_segments,
    b"\xff\xd8\xff": jpeg_segments,
    b"RIFF": webp_segments,
    b"GIF8": gif_segments,
}


def tiff_entries(file: IO[bytes]) -> tuple[str, int, dict[int, bytes]]:
    """The byte order of a TIFF, where its first directory is, and its entries of 12 bytes by tag.

    struct.error if it is cut short.
    """
    file.seek(0)
    head = file.read(8)
    order = "<" if head[:2] == b"II" else ">"
    (at,) = struct.unpack_from(f"{order}L", head, 4)
    file.seek(at)
    (count,) = struct.unpack(f"{order}H", file.read(2))
    directory = file.read(12 * count)
    entries = (directory[start : start + 12] for start in range(0, len(directory) - 11, 12))
    return order, at, {struct.unpack_from(f"{order}H", entry)[0]: entry for entry in entries}


def strip_tiff(content: bytes, kept: tuple[str, ...]) -> bytes | None:
    """A TIFF whose first directory has the tags of its pixels alone, and is the last; None if it is cut short.

    A directory is a count, entries in the order of their tags, and the offset of the next directory.
    """
    try:
        order, at, entries = tiff_entries(io.BytesIO(content))
    except struct.error:
        return None
    wanted = TIFF_PIXELS | {TIFF_METADATA[kind] for kind in kept}
    left = [entry for tag, entry in entries.items() if tag in wanted]
    directory = struct.pack(f"{order}H", len(left)) + b"".join(left) + bytes(4)
    return content[:at] + directory + content[at + len(directory) :]


def exif_orientation(exif: bytes) -> int:
    """The orientation in EXIF data, a small TIFF; 1 without one.

    Pillow stops reading where an entry is damaged, and then lacks those after it.
    """
    try:
        order, _, entries = tiff_entries(io.BytesIO(exif.removeprefix(b"Exif\0\0")))
        kind, count, value = struct.unpack(f"{order}2xHLH2x", entries[TIFF_METADATA[EXIF]])
    except (struct.error, KeyError):
        return 1
    return value if (kind, count) == (3, 1) else 1


def check_tiff(file: IO[bytes], read: Container[int]) -> None:
    """ValueError if the first directory has a tag that matters and was not `read`: Pillow stops at a damaged one."""
    file.seek(0)
    if file.read(4) not in TIFF:  # such as BigTIFF
        return
    lost = [tag for tag in tiff_entries(file)[2] if tag in TIFF_PIXELS | {*TIFF_METADATA.values()} and tag not in read]
    if lost:
        raise ValueError(f"its tag {lost[0]} cannot be read")


def check_png(file: IO[bytes]) -> None:
    """ValueError if a chunk of pixels has a wrong CRC, which Pillow does not check; ancillary chunks may have one."""
    file.seek(len(PNG))
    while len(header := file.read(8)) == 8:
        length, name = struct.unpack(">L4s", header)
        if name == b"IEND":
            return
        if not name.isalpha():
            raise ValueError("it has bytes between its chunks")
        if name not in PNG_PIXELS:
            file.seek(length + 4, io.SEEK_CUR)
            continue
        found = zlib.crc32(name)
        while length and (data := file.read(min(length, PIECE))):
            found, length = zlib.crc32(data, found), length - len(data)
        crc = file.read(4)
        if length or len(crc) < 4:
            raise ValueError("it is cut short")
        if found != int.from_bytes(crc, "big"):
            raise ValueError(f"the checksum of its {name.decode()} chunk is wrong")
