"""What the processor is, and whether it multiplies bfloat16. Without TensorFlow, for the study."""

import pathlib
import platform
import re

from harness import environment
from harness.errors import Failed

BFLOAT16 = ("amx_bf16", "avx512_bf16")  # instructions that multiply it, the faster ones first


def check_precision(precision):
    """Raises: Failed, products of this precision would be slow here."""
    if precision == "float32":
        return
    if not bfloat16_instructions():
        raise Failed(
            f"--precision={precision}: this processor has no instructions for it"
            f" ({' or '.join(reversed(BFLOAT16))}). Leave out the flag."
        )
    if environment.onednn() != "1":
        raise Failed(
            f"--precision={precision}: TF_ENABLE_ONEDNN_OPTS=0 switches off the instructions for"
            " it. Unset it, or leave out the flag."
        )


def bfloat16_instructions():
    """The processor's fastest instructions for products of bfloat16, or None."""
    return named_in(cpuinfo(), BFLOAT16)


def description():
    """Its name and vector instructions; machines of the same name may differ in these."""
    text = cpuinfo()
    named = re.search(r"model name\s*:\s*(.+)", text)
    name = named[1] if named else platform.processor() or platform.machine()
    return {"processor": name, "vectors": named_in(text, ("avx512f", "avx2", "avx"))}


def cpuinfo():
    """What Linux says of its processors; elsewhere, nothing."""
    try:
        return pathlib.Path("/proc/cpuinfo").read_text(errors="replace")
    except OSError:
        return ""


def named_in(text, words):
    """Returns: the first of the words that the text has, or None."""
    return next((word for word in words if re.search(rf"\b{word}\b", text)), None)
