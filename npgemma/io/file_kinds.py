"""What a file of a model is by its first bytes, where it is not the file that its name promises."""

import re
from pathlib import Path

from npgemma.errors import listed
from npgemma.io.regular_files import open_regular

HEAD = 512  # how many bytes of a file tell its kind
MARKUP = rb"(?:\xef\xbb\xbf)?(?i:<\?xml[^>]*>|<!--(?:(?!-->).)*-->|\s)*"
REFUSALS = (
    rb"access to (?:model|this)|(?:repository|entry|revision|file|page|\d{3}:? ?)?[ :-]*not found"
    rb"|invalid (?:username|user|credentials|rev)|unauthori[sz]ed|forbidden|access denied|cannot access gated"
)
AGAIN = "download it again"
ELSEWHERE = (
    "which npgemma does not read; use the model's repository in Hugging Face layout, "
    "such as google/paligemma-3b-mix-224"
)
PICKLE = "a pickle, which can run any code when it is loaded, so npgemma does not read it"
POINTER = "a git-lfs pointer, not the file itself"
ARCHIVE = "an archive; unpack it first"
NPZ = "an .npz archive of NumPy arrays"
EMPTY = "empty; download or copy it again"
VAGUE = {PICKLE, ARCHIVE, NPZ, EMPTY}  # kinds about which the name of a file may say more
POINTER_START = rb"version https://(?:git-lfs|hawser)"

# In this order; a pattern matches at the first byte.
KINDS = tuple(
    (re.compile(pattern, re.DOTALL), kind)
    for pattern, kind in (
        (POINTER_START, POINTER),
        (rb"# xet version", f"a Xet pointer, not the file itself; {AGAIN}"),
        (rb"/annex/objects|(?:\.\./)*\.git/annex", "a git-annex pointer, not the file itself; run 'git annex get'"),
        (
            rb"(?:\.\.[/\\])+blobs[/\\]",
            "the text of a link, not the file itself; copy the cache with its links followed",
        ),
        (
            MARKUP + rb"(?i:<(?:!doctype html|html|head|body)\b)",
            f"an HTML page, not the file itself: probably a login page or an error; {AGAIN}",
        ),
        (
            rb"(?:\xef\xbb\xbf)?\s*<\?xml",
            f"an XML document, not the file itself: probably an error of the server; {AGAIN}",
        ),
        (
            rb"(?i:\w+(?: \w+)*\. redirecting to )",
            "the text of a redirect, not the file itself; download it with 'hf download', or with 'curl -L'",
        ),
        (
            rb"\s*(?i:" + REFUSALS + rb')|\s*\{\s*"(?:error|errors|detail|message|statusCode)"\s*:',
            "the error message of a server, not the file itself; log in with 'hf auth login' and download it again",
        ),
        (rb"GGUF|FUGG", f"a GGUF file of llama.cpp, {ELSEWHERE}"),
        (rb"lmgg|tjgg|fmgg", f"a GGML file, {ELSEWHERE}"),
        (rb"\x89HDF", f"an HDF5 file of Keras, {ELSEWHERE}"),
        (rb"....TFL3", f"a TensorFlow Lite file, {ELSEWHERE}"),
        (rb"PK\x03\x04.{26}[^\0]*?(?:data\.pkl|\.data/)", PICKLE),
        (rb"PK\x03\x04.{26}[\w./ -]*?\.npy", NPZ),
        (rb"\x93NUMPY", "a NumPy array"),
        (rb"\x80[\2-\5]", PICKLE),
        (rb"PK\x03\x04|PK\x05\x06|\x1f\x8b|BZh|\xfd7zXZ|7z\xbc\xaf|Rar!|\x28\xb5\x2f\xfd|.{257}ustar", ARCHIVE),
        (rb"\x89PNG|\xff\xd8\xff|GIF8[79]a|RIFF....WEBP|%PDF-", "a picture or a PDF, not a part of a model"),
    )
)


def foreign_kind(path: Path) -> str | None:
    """What a file is by its first bytes, if it is one of KINDS or empty; None if it is not, or cannot be read."""
    head = first_bytes(path)
    if head is None:
        return None
    if not head.strip():
        return EMPTY
    kind = next((kind for pattern, kind in KINDS if pattern.match(head)), None)
    return with_other_pointers(path) if kind == POINTER else kind


def first_bytes(path: Path) -> bytes | None:
    """The first bytes of a file; None if it cannot be read."""
    try:
        with open_regular(path) as file:
            return file.read(HEAD)
    except OSError:
        return None


def with_other_pointers(path: Path) -> str:
    """That a file is a git-lfs pointer, which others of its folder are, and what to do about all of them."""
    others = [each.name for each in sorted(path.parent.iterdir()) if each != path and is_pointer(each)]
    also = f", like {listed(others)}" if others else ""
    return f"{POINTER}{also}; run 'git lfs pull' in {path.parent}, or download the model again"


def is_pointer(path: Path) -> bool:
    """Whether a file is a git-lfs pointer; a pipe, which would block, is not."""
    return path.is_file() and re.match(POINTER_START, first_bytes(path) or b"") is not None
