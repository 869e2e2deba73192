"""Metadata that is damaged leaves the pixels, and the way up, of the undamaged file; damaged pixels are refused."""

import io
import struct
import zlib
from collections.abc import Callable

import numpy as np
import pytest
from pictures import encoded, noise, rgb
from PIL import Image, ImageCms, ImageOps

from npgemma.errors import BadPicture
from npgemma.io.picture import read_picture

PICTURE = Image.fromarray(noise(17, 23, 3))
ICC = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF><rdf:Description tiff:Orientation="6"/></rdf:RDF></x:xmpmeta>'


def exif(orientation: int = 6) -> bytes:
    made = Image.Exif()
    made[0x0112], made[0x010E], made[0x011A] = orientation, "a picture", 72.0
    return made.tobytes()


def png_chunk(name: bytes, data: bytes, crc: int | None = None) -> bytes:
    return (
        struct.pack(">L", len(data)) + name + data + struct.pack(">L", zlib.crc32(name + data) if crc is None else crc)
    )


def png(*before: bytes, after: tuple[bytes, ...] = ()) -> bytes:
    """A PNG with chunks between its header and its pixels, and after its pixels."""
    plain = encoded(PICTURE, "PNG")
    return plain[:33] + b"".join(before) + plain[33:-12] + b"".join(after) + plain[-12:]


def jpeg_segment(marker: int, data: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(data) + 2) + data


def jpeg(*segments: bytes) -> bytes:
    plain = encoded(PICTURE, "JPEG")
    return plain[:20] + b"".join(segments) + plain[20:]


def webp(flags: int, *chunks: tuple[bytes, bytes]) -> bytes:
    """A WebP in its extended form; ICCP comes before the pixels, everything else after them."""
    plain = encoded(PICTURE, "WEBP", lossless=True)

    def packed(name: bytes, data: bytes) -> bytes:
        return name + struct.pack("<L", len(data)) + data + bytes(len(data) % 2)

    size = struct.pack("<L", 23 - 1)[:3] + struct.pack("<L", 17 - 1)[:3]
    first = b"".join(packed(*chunk) for chunk in chunks if chunk[0] == b"ICCP")
    last = b"".join(packed(*chunk) for chunk in chunks if chunk[0] != b"ICCP")
    body = b"WEBP" + packed(b"VP8X", bytes([flags, 0, 0, 0]) + size) + first + plain[12:] + last
    return b"RIFF" + struct.pack("<L", len(body)) + body


def tiff(*tags: tuple[int, int, int, int], order: str = "<", turned: bool = True) -> bytes:
    """A TIFF of one strip with further tags: number, type, count, value or offset."""
    pixels = PICTURE.tobytes()[: -len(XMP)] + XMP  # which a tag may point at
    own = [(256, 4, 1, 23), (257, 4, 1, 17), (258, 3, 1, 8 if order == "<" else 8 << 16)]
    short = (lambda n: n) if order == "<" else (lambda n: n << 16)
    own += [(259, 3, 1, short(1)), (262, 3, 1, short(2)), (273, 4, 1, 8), (277, 3, 1, short(3)), (278, 4, 1, 17)]
    own += [(279, 4, 1, len(pixels))] + ([(274, 3, 1, short(6))] if turned else [])
    entries = sorted([*own, *tags])
    packed = b"".join(struct.pack(f"{order}HHLL", *entry) for entry in entries)
    magic = b"II*\0" if order == "<" else b"MM\0*"
    return (
        magic
        + struct.pack(f"{order}L", 8 + len(pixels))
        + pixels
        + struct.pack(f"{order}H", len(entries))
        + packed
        + bytes(4)
    )


def gif(*extensions: bytes) -> bytes:
    plain = encoded(PICTURE, "GIF")
    at = 13 + (3 << (plain[10] & 7) + 1)
    return plain[:at] + b"".join(extensions) + plain[at:]


def broken_exif(*tags: tuple[int, int, int, int], order: str = "<") -> bytes:
    """EXIF data of these tags and the orientation, all in one directory: number, type, count, value or offset."""
    entries = sorted([*tags, (0x0112, 3, 1, 6 if order == "<" else 6 << 16)])
    packed = b"".join(struct.pack(f"{order}HHLL", *entry) for entry in entries)
    magic = b"II*\0" if order == "<" else b"MM\0*"
    return magic + struct.pack(f"{order}LH", 8, len(entries)) + packed + bytes(4)


TURNED = png_chunk(b"eXIf", exif())
MEGABYTE = zlib.compress(bytes(1_000_000))
BOMB = zlib.compress(bytes(3 << 20))
JPEG_TURNED = jpeg_segment(0xE1, exif())
JPEG_XMP = b"http://ns.adobe.com/xap/1.0/\0" + XMP
PNG_XMP = png_chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + XMP)
# By name: a file with damaged metadata, and one with the same pixels, the same way up, and metadata that is whole.
DAMAGED: dict[str, tuple[bytes, bytes]] = {}


def damaged(make: Callable[..., bytes], whole: bytes, **damage: bytes) -> None:
    for name, content in damage.items():
        DAMAGED[f"{make.__name__} {name.replace('_', ' ')}"] = content, whole


damaged(
    png,
    png(),
    short_gamma=png(png_chunk(b"gAMA", b"\0")),
    empty_gamma=png(png_chunk(b"gAMA", b"")),
    short_chromaticities=png(png_chunk(b"cHRM", bytes(5))),
    empty_rendering_intent=png(png_chunk(b"sRGB", b"")),
    short_density=png(png_chunk(b"pHYs", b"\0")),
    short_time=png(png_chunk(b"tIME", b"\0")),
    empty_background=png(png_chunk(b"bKGD", b"")),
    profile_without_an_end=png(png_chunk(b"iCCP", b"x" * 90)),
    profile_of_an_unknown_compression=png(png_chunk(b"iCCP", b"icc\0\x07" + zlib.compress(ICC))),
    profile_that_is_cut=png(png_chunk(b"iCCP", b"icc\0\0" + zlib.compress(ICC)[:50])),
    profile_that_is_a_bomb=png(png_chunk(b"iCCP", b"icc\0\0" + BOMB)),
    profile_that_is_empty=png(png_chunk(b"iCCP", b"")),
    animation_of_no_frames=png(png_chunk(b"acTL", bytes(8))),
    animation_that_is_cut=png(png_chunk(b"acTL", bytes(3))),
    frame_that_is_cut=png(png_chunk(b"acTL", struct.pack(">LL", 2, 0)), png_chunk(b"fcTL", bytes(3))),
    EXIF_of_zeros=png(png_chunk(b"eXIf", bytes(40))),
    EXIF_that_is_empty=png(png_chunk(b"eXIf", b"")),
    EXIF_that_is_cut=png(png_chunk(b"eXIf", exif()[6:12])),
    EXIF_as_text_that_is_not_hexadecimal=png(png_chunk(b"tEXt", b"Raw profile type exif\0\nexif\n 4\nxyz\n")),
)
damaged(
    png,
    png(TURNED),
    wrong_CRC_of_text=png(TURNED, png_chunk(b"tEXt", b"a\0b", 7)),
    wrong_CRC_of_text_before_EXIF=png(png_chunk(b"tEXt", b"a\0b", 7), TURNED),
    wrong_CRC_of_a_time=png(TURNED, png_chunk(b"tIME", bytes(7), 7)),
    wrong_CRC_of_a_private_chunk=png(TURNED, png_chunk(b"prVt", b"abc", 7)),
    wrong_CRC_of_a_profile=png(TURNED, png_chunk(b"iCCP", b"icc\0\0" + zlib.compress(ICC), 7)),
    wrong_CRC_of_gamma=png(TURNED, png_chunk(b"gAMA", struct.pack(">L", 45455), 7)),
    wrong_CRC_of_text_after_the_pixels=png(TURNED, after=(png_chunk(b"tEXt", b"a\0b", 7),)),
    compressed_text_of_3_MB=png(TURNED, png_chunk(b"zTXt", b"a\0\0" + BOMB)),
    compressed_text_of_3_MB_after_the_pixels=png(TURNED, after=(png_chunk(b"zTXt", b"a\0\0" + BOMB),)),
    compressed_international_text_of_3_MB=png(TURNED, png_chunk(b"iTXt", b"a\0\1\0\0\0" + BOMB)),
    text_of_an_unknown_compression=png(TURNED, png_chunk(b"zTXt", b"a\0\x07" + BOMB[:9])),
    text_that_is_cut=png(TURNED, png_chunk(b"zTXt", b"a\0\0" + zlib.compress(b"hello")[:6])),
    text_without_a_key=png(TURNED, png_chunk(b"tEXt", b"")),
    international_text_that_is_not_UTF_8=png(TURNED, png_chunk(b"iTXt", b"\xff\xfe\0\0\0\0\0\xff\xff")),
    international_text_without_fields=png(TURNED, png_chunk(b"iTXt", b"a\0")),
    many_texts=png(TURNED, *(png_chunk(b"zTXt", b"a%d\0\0" % i + MEGABYTE) for i in range(70))),
    text_cut_at_the_end_of_the_file=png(TURNED)[:-12] + png_chunk(b"tEXt", b"a\0" + b"b" * 50)[:30],
    XMP_that_is_cut=png(TURNED, png_chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(XMP)[:20])),
)
damaged(
    png,
    png(PNG_XMP),
    EXIF_of_zeros_beside_XMP=png(png_chunk(b"eXIf", bytes(40)), PNG_XMP),
    wrong_CRC_of_EXIF_beside_XMP=png(png_chunk(b"eXIf", exif(1), 7), PNG_XMP),
)
damaged(
    jpeg,
    jpeg(),
    EXIF_of_zeros=jpeg(jpeg_segment(0xE1, b"Exif\0\0" + bytes(40))),
    EXIF_of_noise=jpeg(jpeg_segment(0xE1, b"Exif\0\0" + noise(60).tobytes())),
    EXIF_that_is_empty=jpeg(jpeg_segment(0xE1, b"Exif\0\0")),
    EXIF_that_is_cut=jpeg(jpeg_segment(0xE1, exif()[:16])),
    EXIF_whose_directory_is_outside=jpeg(jpeg_segment(0xE1, b"Exif\0\0II*\0\xff\xff\xff\x7f")),
    JFIF_that_is_cut=encoded(PICTURE, "JPEG")[:2] + jpeg_segment(0xE0, b"JFIF\0") + encoded(PICTURE, "JPEG")[20:],
)
damaged(
    jpeg,
    jpeg(JPEG_TURNED),
    a_profile_that_is_cut=jpeg(JPEG_TURNED, jpeg_segment(0xE2, b"ICC_PROFILE\0")),
    a_profile_of_noise=jpeg(JPEG_TURNED, jpeg_segment(0xE2, b"ICC_PROFILE\0\1\1" + noise(99).tobytes())),
    a_profile_of_missing_parts=jpeg(JPEG_TURNED, jpeg_segment(0xE2, b"ICC_PROFILE\0\2\7" + ICC)),
    an_index_of_pictures_that_is_empty=jpeg(JPEG_TURNED, jpeg_segment(0xE2, b"MPF\0")),
    an_index_of_pictures_of_zeros=jpeg(JPEG_TURNED, jpeg_segment(0xE2, b"MPF\0" + bytes(50))),
    an_index_of_pictures_without_entries=jpeg(JPEG_TURNED, jpeg_segment(0xE2, b"MPF\0II*\0\x08\0\0\0\0\0\0\0\0\0")),
    an_index_of_pictures_of_noise=jpeg(JPEG_TURNED, jpeg_segment(0xE2, b"MPF\0II*\0\x08\0\0\0" + noise(99).tobytes())),
    Photoshop_data_that_is_cut=jpeg(JPEG_TURNED, jpeg_segment(0xED, b"Photoshop 3.0\x008BIM\x03\xed")),
    Photoshop_data_of_a_wrong_length=jpeg(
        JPEG_TURNED, jpeg_segment(0xED, b"Photoshop 3.0\x008BIM\x03\xed\0\0\xff\xff\xff\xff")
    ),
    FlashPix_data_of_noise=jpeg(JPEG_TURNED, jpeg_segment(0xE2, b"FPXR\0" + noise(50).tobytes())),
    a_comment_of_noise=jpeg(JPEG_TURNED, jpeg_segment(0xFE, noise(50).tobytes())),
    XMP_of_noise=jpeg(JPEG_TURNED, jpeg_segment(0xE1, JPEG_XMP[:29] + noise(50).tobytes())),
)
damaged(
    jpeg,
    jpeg(jpeg_segment(0xE1, JPEG_XMP)),
    EXIF_of_zeros_beside_XMP=jpeg(jpeg_segment(0xE1, b"Exif\0\0" + bytes(40)), jpeg_segment(0xE1, JPEG_XMP)),
)
damaged(
    webp,
    webp(0),
    EXIF_of_zeros=webp(8, (b"EXIF", bytes(40))),
    EXIF_that_is_empty=webp(8, (b"EXIF", b"")),
    EXIF_of_noise=webp(8, (b"EXIF", noise(61).tobytes())),
    EXIF_that_is_cut=webp(8, (b"EXIF", exif()[6:14])),
    EXIF_cut_at_the_end_of_the_file=webp(8, (b"EXIF", exif()[6:]))[:-20],
    EXIF_that_is_missing=webp(8),
)
damaged(
    webp,
    webp(8, (b"EXIF", exif()[6:])),
    XMP_of_noise=webp(12, (b"EXIF", exif()[6:]), (b"XMP ", noise(50).tobytes())),
    XMP_cut_at_the_end_of_the_file=webp(12, (b"EXIF", exif()[6:]), (b"XMP ", XMP))[:-9],
    a_profile_of_noise=webp(40, (b"ICCP", noise(50).tobytes()), (b"EXIF", exif()[6:])),
    a_profile_that_is_empty=webp(40, (b"ICCP", b""), (b"EXIF", exif()[6:])),
    a_profile_that_is_missing=webp(40, (b"EXIF", exif()[6:])),
)
damaged(
    gif,
    gif(),
    a_comment_of_noise=gif(b"\x21\xfe\x32" + noise(50).tobytes() + b"\0"),
    a_comment_that_is_empty=gif(b"\x21\xfe\0"),
    an_extension_that_is_cut=gif(b"\x21\xff\x0bNETSCAPE2.0\0"),
    an_extension_of_noise=gif(b"\x21\xff\x0bXMP DataXMP\x32" + noise(50).tobytes() + b"\0"),
    an_extension_of_an_unknown_kind=gif(b"\x21\x77\x02ab\0"),
    an_extension_that_is_empty=gif(b"\x21\xff\0"),
    a_text_that_is_cut=gif(b"\x21\x01\x01a\0"),
)
FAR = 0x7FFFFFF0
BROKEN_TAGS = {
    "a description outside the data": (0x010E, 2, 99, FAR),
    "a maker outside the data": (0x010F, 2, 99, FAR),
    "a description of a huge count": (0x010E, 2, 0xFFFFFFFF, 8),
    "a density outside the data": (0x011A, 5, 1, FAR),
    "a width of an unknown type": (0x0100, 99, 1, 1),
    "further data outside the data": (0x8769, 4, 1, FAR),
    "a location outside the data": (0x8825, 4, 1, FAR),
}
for order in "<>":
    for name, tag in BROKEN_TAGS.items():
        raw = broken_exif(tag, order=order)
        DAMAGED |= {
            f"png EXIF {order} of {name}": (png(png_chunk(b"eXIf", raw)), png(TURNED)),
            f"jpeg EXIF {order} of {name}": (jpeg(jpeg_segment(0xE1, b"Exif\0\0" + raw)), jpeg(JPEG_TURNED)),
            f"webp EXIF {order} of {name}": (webp(8, (b"EXIF", raw)), webp(8, (b"EXIF", exif()[6:]))),
        }
for order in "<>":
    DAMAGED |= {
        f"tiff {order} {name.replace('_', ' ')}": (tiff(tag, order=order), tiff(order=order))
        for name, tag in {
            "a description outside the file": (270, 2, 99, FAR),
            "a profile outside the file": (34675, 7, 5000, FAR),
            "XMP outside the file": (700, 1, 5000, FAR),
            "Photoshop data outside the file": (34377, 7, 5000, FAR),
            "EXIF outside the file": (34665, 4, 1, FAR),
            "a location outside the file": (34853, 4, 1, FAR),
            "further pictures outside the file": (330, 4, 1, FAR),
            "a density outside the file": (282, 5, 1, FAR),
            "a density that is text": (282, 2, 9, 8),
            "a unit of density of an unknown type": (296, 99, 1, 2),
            "a private tag of an unknown type": (65000, 99, 1, 2),
            "a private tag outside the file": (65000, 7, 5000, FAR),
            "a date of a huge count": (306, 2, 0xFFFFFFFF, 8),
            "a page number of no values": (297, 3, 0, 0),
        }.items()
    }


# Pillow reads no tag after a damaged one: it would take three planes for one, and not turn the picture by its XMP.
for order, two in (("<", 2), (">", 2 << 16)):
    planes, density = (284, 3, 1, two), (282, 5, 1, FAR)
    DAMAGED[f"tiff {order} a density before the planes"] = (
        tiff(density, planes, order=order, turned=False),
        tiff(planes, order=order, turned=False),
    )
for name, tag in {"a density": (282, 5, 1, FAR), "a program": (305, 2, 99, FAR), "a date": (306, 2, 20, FAR)}.items():
    turned_by_xmp = [(700, 1, len(XMP), 8 + len(PICTURE.tobytes()) - len(XMP))]
    DAMAGED[f"tiff {name} before XMP"] = tiff(tag, *turned_by_xmp, turned=False), tiff(*turned_by_xmp, turned=False)


@pytest.mark.parametrize(("content", "whole"), DAMAGED.values(), ids=DAMAGED)
def test_damaged_metadata_does_not_cost_the_picture(content, whole, tmp_path):
    """The expected pixels are Pillow's, of the same picture with metadata that is whole."""
    (tmp_path / "whole").write_bytes(whole)
    (tmp_path / "damaged").write_bytes(content)
    with Image.open(tmp_path / "whole") as image:
        expected = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    np.testing.assert_array_equal(rgb(read_picture(tmp_path / "damaged")), expected, strict=True)


def test_the_pictures_above_are_turned_in_every_format_that_can_say_so():
    """Otherwise an orientation that is lost would not be found."""
    for make, whole in ((png, png(TURNED)), (jpeg, jpeg(JPEG_TURNED)), (webp, webp(8, (b"EXIF", exif()[6:])))):
        assert sum(other == whole for name, (_, other) in DAMAGED.items() if name.startswith(make.__name__)) >= 5
        with Image.open(io.BytesIO(whole)) as image:
            assert ImageOps.exif_transpose(image).size == (17, 23)


def flipped(content: bytes, name: bytes, at: int = 0) -> bytes:
    """A PNG with one bit of a chunk's data inverted, and its checksum unchanged."""
    raw = bytearray(content)
    raw[raw.index(name) + 4 + at] ^= 1
    return bytes(raw)


PALETTE = encoded(PICTURE.quantize(16), "PNG", transparency=bytes(range(16)))
PLAIN = encoded(PICTURE, "PNG")
PIXELS = {
    "IHDR": flipped(PLAIN, b"IHDR", 3),
    "PLTE": flipped(PALETTE, b"PLTE", 5),
    "tRNS": flipped(PALETTE, b"tRNS", 5),
    **{f"IDAT at {at}": flipped(PLAIN, b"IDAT", at) for at in (2, 9, 100, 500, 900)},
    "IDAT beside metadata that is damaged": flipped(png(TURNED, png_chunk(b"tEXt", b"a\0b", 7)), b"IDAT", 300),
    "the checksum of IDAT": PLAIN[:-13] + bytes([PLAIN[-13] ^ 1]) + PLAIN[-12:],
}


@pytest.mark.parametrize("content", PIXELS.values(), ids=PIXELS)
def test_a_png_with_a_wrong_checksum_of_its_pixels_is_refused(content, tmp_path):
    """Pillow does not check it while it reads, and would show other pixels."""
    (tmp_path / "picture.png").write_bytes(content)
    with pytest.raises(BadPicture, match=r"picture\.png cannot be read: "):
        read_picture(tmp_path / "picture.png")


CUT = {
    "png": png(TURNED, png_chunk(b"tEXt", b"a\0b", 7)),
    "jpeg": jpeg(JPEG_TURNED, jpeg_segment(0xE2, b"ICC_PROFILE\0\1\1" + ICC)),
    "webp": webp(40, (b"ICCP", noise(50).tobytes())),
    "gif": gif(b"\x21\xfe\x32" + noise(50).tobytes() + b"\0"),
}


@pytest.mark.parametrize("kind", CUT)
@pytest.mark.parametrize("missing", [40, 100, 200, 300])
def test_a_file_that_is_cut_in_its_pixels_is_refused_with_and_without_metadata(kind, missing, tmp_path):
    (tmp_path / "picture").write_bytes(CUT[kind][:-missing])
    with pytest.raises(BadPicture, match="cannot be read"):
        read_picture(tmp_path / "picture")
