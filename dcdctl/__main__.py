"""The console script, and `python -m dcdctl`."""

import signal
import sys


def main() -> None:
    """Run the command line; Ctrl-C at any moment ends it without a traceback."""
    try:
        from dcdctl.cli.app import main as run

        run()
    except KeyboardInterrupt:  # while the commands are imported
        sys.exit(130)
    finally:
        # Python now waits for threads and closes what libraries opened; another Ctrl-C ends it at once.
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            signal.signal(signal.SIGINT, signal.SIG_DFL)


if __name__ == "__main__":
    main()
