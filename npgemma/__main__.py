"""The command `npgemma`, also `python -m npgemma`.

Ctrl-C while its modules are imported, half a second, waits until `main` can answer it.
"""

import signal
import sys


def main() -> int:
    """Import the command line and run it; returns the exit status."""
    can_wait = hasattr(signal, "pthread_sigmask")  # not on Windows
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT}) if can_wait else set()
    from npgemma.commands import cli
    from npgemma.commands.output import INTERRUPTED, say

    try:
        if can_wait:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)  # a Ctrl-C that has waited arrives here
        return cli.main()
    except KeyboardInterrupt:
        say("npgemma: interrupted", file=sys.stderr)
        return INTERRUPTED


if __name__ == "__main__":
    sys.exit(main())
