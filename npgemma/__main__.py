"""The command `npgemma`, also `python -m npgemma`.

Ctrl-C while its modules are imported, half a second, waits until `main` can answer it. What libraries in C print about
a damaged file, such as libtiff, does not reach the user: stderr is for npgemma's own sentence.
"""

import os
import signal
import sys


def main() -> int:
    """Import the command line and run it; returns the exit status."""
    can_wait = hasattr(signal, "pthread_sigmask")  # not on Windows
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT}) if can_wait else set()
    try:
        from npgemma.commands import cli
    except (ImportError, MemoryError) as error:  # such as in an address space that is too small for NumPy
        reason = str(error).strip().splitlines() or ["out of memory"]
        print(f"npgemma: its libraries cannot be loaded: {reason[-1]}", file=sys.stderr)
        return 1
    from npgemma.commands.output import INTERRUPTED, tell

    keep_stderr()
    try:
        if can_wait:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)  # a Ctrl-C that has waited arrives here
        return cli.main()
    except KeyboardInterrupt:
        tell("interrupted")
        return INTERRUPTED


def keep_stderr() -> None:
    """Move Python's stderr to a descriptor of its own: what else is written to the usual one, 2, is lost.

    The process does this once, before it has threads: to do it around a decoder would lose lines of other threads.
    """
    usual = sys.__stderr__
    if usual is None or sys.stderr is not usual:  # it is closed, or somebody's own
        return
    own = os.dup(2)
    sys.stderr = open(own, "w", 1, usual.encoding, usual.errors)  # noqa: SIM115 - to the end of the process
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    os.close(nowhere)
    if "faulthandler" in sys.modules and sys.modules["faulthandler"].is_enabled():
        sys.modules["faulthandler"].enable(sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
