"""What the scripts of this folder do with flags that only absl knows."""

import sys

from absl import flags


def refuse_flags_without_effect(script):
    """Ends the program if one of absl's own flags for logging is given: nothing here logs."""
    for flag in flags.FLAGS.get_flags_for_module("absl.logging"):
        if flag.present:
            sys.exit(f"{script}: --{flag.name}: has no effect in this program. Leave it out.")
