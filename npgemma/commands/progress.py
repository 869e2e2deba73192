"""How far a long command is: rate and time left."""

import sys
import time

from npgemma.commands.output import WIPE, tell


class Progress:
    """Progress on a terminal's stderr: results, rate, time left; and one line at the end, terminal or not."""

    def __init__(self, total: int, done: int) -> None:
        self.total, self.before, self.done, self.failed = total, done, done, 0
        self.began = time.monotonic()
        self.shown = sys.stderr.isatty()

    def count(self, results: int = 1, failed: int = 0) -> None:
        """So many more results, of which `failed` are errors."""
        self.done += results
        self.failed += failed
        if self.shown:
            rate = (self.done - self.before) / max(1e-9, time.monotonic() - self.began)
            left = duration((self.total - self.done) / rate)
            errors = f", {self.failed} errors" if self.failed else ""
            line = f"{self.done} of {self.total}, {rate:.2f} a second, {left} left{errors}"
            print(f"{WIPE}{line}", end="", file=sys.stderr, flush=True)

    def wipe(self) -> None:
        if self.shown:
            print(WIPE, end="", file=sys.stderr, flush=True)

    def end(self, note: str) -> None:
        took, answered = time.monotonic() - self.began, self.done - self.before
        self.wipe()
        rate = f"{answered / max(1e-9, took):.2f} a second"
        facts = f"{self.done} of {self.total} done, {answered} now in {duration(took)} ({rate})"
        tell(f"{facts}{'; ' if note else ''}{note}")


def duration(seconds: float) -> str:
    """'4 s', '3 min 20 s', '2 h 5 min'."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
