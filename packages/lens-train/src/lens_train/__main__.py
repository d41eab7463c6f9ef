"""`torchrun … -m lens_train recipe.yaml`: a pipeline whose training is done by many processes."""

from __future__ import annotations

import argparse
import sys

from lens_core.errors import LensError


def main() -> None:
    """Parse, run, and end as `lens` does: errors are lines and exit codes."""
    parser = argparse.ArgumentParser(prog="lens_train", description=__doc__)
    parser.add_argument("file", help="The pipeline's YAML file.")
    parser.add_argument("--set", metavar="PATH=VALUE", action="append", default=[], help="Change a value.")
    options = parser.parse_args()
    try:
        from lens_train.launch import launch  # noqa: PLC0415 (torch takes seconds; `--help` need not wait for it)

        launch(options.file, options.set)
    except LensError as error:
        for line in str(error).splitlines():
            sys.stderr.write(f"lens: {line}\n")
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
