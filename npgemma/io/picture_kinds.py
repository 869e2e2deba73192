"""What a file is, by its first bytes: a picture that npgemma reads, or the name of what it is instead."""

import re
from typing import NamedTuple

from npgemma.errors import BadPicture, shortened

HEAD = 1024  # how many bytes of a file tell its kind

READ = re.compile(
    rb"\x89PNG\r\n\x1a\n|\xff\xd8\xff|RIFF....WEBP|GIF8[79]a|BM.{4}\0{4}|P[1-6](?:\s|#[^\n]*\n)+\d|P[fF]\s+\d"
    rb"|II(?:\*\0|\0\*|\+\0)|MM(?:\0\*|\*\0|\0\+)",
    re.DOTALL,
)
SUFFIXES = {
    *(".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".jif", ".mpo", ".webp", ".gif", ".bmp", ".dib"),
    *(".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".pnm", ".pfm"),
}
RAW_SUFFIXES = {  # of photos that begin like a TIFF
    *(".dng", ".nef", ".nrw", ".arw", ".sr2", ".srf", ".pef", ".srw", ".3fr", ".fff", ".iiq"),
    *(".dcr", ".kdc", ".erf", ".mef", ".mos", ".rwl"),
}


URL = re.compile(r"(?:^|[\\/])((?:[a-z][a-z0-9+.-]+:[\\/]+|data:)[^\\/].*)", re.IGNORECASE | re.DOTALL)


class Kind(NamedTuple):
    """A kind of file that npgemma does not read; a `picture` can be converted."""

    name: str
    picture: bool = True

    def problem(self) -> str:
        """The end of the sentence that begins with the file's name."""
        if self.picture:
            return f"is {self.name}, which npgemma does not read; convert it to PNG or JPEG"
        return f"is not a picture: it is {self.name}"


RAW = Kind("a RAW photo")
EMPTY = Kind("an empty file", picture=False)
TEXT = Kind("text", picture=False)
HEVC = rb"hei[cxmsf]|hev[cmsx]|mif[12]|msf1|heix"
# What may stand before the first tag of a file.
MARKUP = rb"(?:\xef\xbb\xbf)?(?i:<\?xml[^>]*>|<!--(?:(?!-->).)*-->|<!doctype svg[^>]*>|\s)*"
# In this order; a pattern matches at the first byte.
UNREAD = [
    (re.compile(pattern, re.DOTALL), Kind(name, picture))
    for pattern, name, picture in (
        (rb"....ftypavi[fs]|....ftyp(?:mif1|msf1|miaf).{4,}avif", "AVIF", True),
        (rb"....ftyp(?:" + HEVC + rb")", "HEIC", True),
        (rb"....ftypcrx |II\*\0....CR|IIR[OS]\x08|IIU\0|FUJIFILMCCD-RAW|FOVb|\0MRM", RAW.name, True),
        (rb"\0...(?:ftyp|moov|mdat|wide|skip)|\x1aE\xdf\xa3|RIFF....AVI |\0\0\x01[\xb3\xba]|FLV\x01", "a video", False),
        (rb"0&\xb2u\x8ef\xcf\x11", "a video", False),
        (rb"\xff\x0a|\0\0\0\x0cJXL \r\n", "JPEG XL", True),
        (rb"\0\0\0\x0cjP  \r\n|\xffO\xffQ", "JPEG 2000", True),
        (rb"II\xbc\x01|WMPHOTO", "JPEG XR", True),
        (rb"\x8aMNG|\x8bJNG", "MNG", True),
        (rb"%PDF-", "PDF", True),
        (rb"%!PS|\xc5\xd0\xd3\xc6", "PostScript", True),
        (rb"8BP[SB]", "a Photoshop document", True),
        (rb"gimp xcf", "a GIMP document", True),
        (rb"\0\0[\x01\x02]\0[\x01-\xff]\0", "an icon", True),
        (rb"icns", "an icon", True),
        (rb"DDS \x7c|\xabKTX |\x13\xab\xa1\x5c", "a texture (DDS, KTX or ASTC)", True),
        (rb"v/1\x01|#\?RADIANCE|#\?RGBE", "a high dynamic range picture (OpenEXR or HDR)", True),
        (rb"qoif", "QOI", True),
        (rb"\x01\xda[\0\x01][\x01\x02]", "SGI", True),
        (rb"\n[\0-\x05][\0\x01][\x01\x02\x04\x08]", "PCX", True),
        (rb"P7\n", "PAM", True),
        (rb"SIMPLE  =", "FITS", True),
        (rb".{128}DICM", "DICOM", True),
        (rb"\xd7\xcd\xc6\x9a|\x01\0\0\0.{36} EMF|AT&TFORM|/\* XPM", "a drawing or scan (WMF, EMF, DjVu or XPM)", True),
        (rb"\0\x05\x16[\0\x07]", "a macOS resource fork", False),
        (rb"version https://git-lfs", "a Git LFS pointer (run: git lfs pull)", False),
        (rb"PK\x03\x04|\x1f\x8b|BZh|\xfd7zXZ|7z\xbc\xaf|Rar!|\x28\xb5\x2f\xfd", "an archive", False),
        (rb"RIFF....WAVE|ID3[\2-\4]|OggS|fLaC", "a sound", False),
        (MARKUP + rb"(?i:<svg\b)", "SVG", True),
        (MARKUP + rb"(?i:<(?:!doctype html|html)\b)", "a web page", False),
        (rb"(?:\xef\xbb\xbf)?\s*[\[{]", "JSON", False),
    )
]


def kind_of(head: bytes, suffix: str = "") -> Kind | None:
    """What the file with these first bytes is; None for a picture that npgemma reads, and for an unknown kind."""
    if not head:
        return EMPTY
    if is_picture(head):
        return RAW if head[:2] in (b"II", b"MM") and suffix.lower() in RAW_SUFFIXES else None
    for pattern, kind in UNREAD:
        if pattern.match(head):
            return kind
    return TEXT if is_text(head) else None


def is_picture(head: bytes) -> bool:
    """Whether a file that begins like this is in a format that npgemma reads; Canon's RAW photos begin as a TIFF."""
    return READ.match(head) is not None and head[8:10] != b"CR"


def is_text(head: bytes) -> bool:
    """Whether bytes are UTF-8, or UTF-16 with its mark, without control characters; the last character may be cut."""
    if head.startswith((b"\xff\xfe", b"\xfe\xff")):
        return True
    try:
        text = head.decode("utf-8")
    except UnicodeDecodeError as error:
        if len(head) < HEAD or error.start < len(head) - 3:
            return False
        text = head[: error.start].decode("utf-8")
    return not re.search(r"[\x00-\x08\x0e-\x1a\x1c-\x1f]", text)


def check_kind(path: object, head: bytes, suffix: str) -> None:
    """BadPicture if the file is of a kind that npgemma knows and does not read."""
    kind = kind_of(head, suffix)
    if kind is not None:
        raise BadPicture(f"{path} {kind.problem()}")


def url_problem(picture: str) -> str | None:
    """What is wrong with a picture that is a URL, or with a path that was joined with one; None for other paths."""
    found = URL.search(picture)
    if found is None:
        return None
    data = found[1].lower().startswith("data:")
    what = "holds its picture itself" if data else "is a URL; npgemma does not download pictures"
    url = re.sub(r"(?<=\w):/(?!/)", "://", found[1], count=1)  # a Path has one slash less
    return f"{shortened(url, 60)} {what}: save it as a file"
