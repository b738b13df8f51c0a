"""What the entry points share: arguments in Hydra's manner, and errors in one line."""

import argparse
import signal
import sys


def parse(description: str | None) -> argparse.Namespace:
    """`overrides` are Hydra overrides (key=value); `--cfg job` and `--resolve` print the composed configuration."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="overrides of conf/config.yaml, as in Hydra")
    parser.add_argument("--cfg", choices=["job"], help="print the composed configuration and stop")
    parser.add_argument("--resolve", action="store_true", help="with --cfg: resolve interpolations")
    return parser.parse_intermixed_args()


def fail(error: BaseException) -> int:
    """Print what went wrong and what to do; the exit status."""
    if isinstance(error, KeyboardInterrupt):
        print("interrupted", file=sys.stderr)
        return 128 + signal.SIGINT
    cause = (
        getattr(error, "cause", None) or error
    )  # an actor's error carries its own traceback; the cause is its message
    print(f"error: {cause}", file=sys.stderr)
    return 2
