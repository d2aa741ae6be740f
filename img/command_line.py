"""What the scripts of this folder do alike: they start, they write text, and they refuse flags."""

import io
import sys

from absl import app, flags


def run(main):
    """Runs main(argv) as the program. What a terminal cannot show becomes a question mark."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # not None, as without a terminal
            stream.reconfigure(errors="replace")
    app.run(main)


def refuse_flags_without_effect(script):
    """Ends the program if one of absl's own flags for logging is given: nothing here logs."""
    for flag in flags.FLAGS.get_flags_for_module("absl.logging"):
        if flag.present:
            sys.exit(f"{script}: --{flag.name}: has no effect in this program. Leave it out.")
