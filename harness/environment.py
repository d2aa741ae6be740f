"""Hides or records environment variables that could change results or end a run."""

import contextlib
import os
import platform
import re
import warnings

# Taken away: one of JAX's or another program's changes results or speed, or ends a run.
COMPILER_FLAGS = ("XLA_FLAGS", "TF_XLA_FLAGS")
# Taken away if they are not as here, because a library would take them for what they are not.
FORMS = {
    "COLUMNS": (r"\d+", "a whole number"),
    "LINES": (r"\d+", "a whole number"),
    "TF_CPP_MIN_LOG_LEVEL": (r"\d+", "a whole number"),
    "TF_CPP_MAX_VLOG_LEVEL": (r"\d+", "a whole number"),
    "TF_ENABLE_ONEDNN_OPTS": ("0|1|true|false", "0 or 1"),
}
# A result's bits may depend on these, so that they are recorded with it.
OF_RESULTS = re.compile(  # Terraform's begin with TF_, too
    "(ONEDNN|DNNL|NVIDIA_TF32|TF_(ENABLE|DISABLE|USE|SET|ONEDNN|MKL|DETERMINISTIC|OVERRIDE|CUDNN"
    "|AUTOTUNE|MATMUL|CONV2D|FP16|AUTO_MIXED_PRECISION))_.+"
)
# But not on these: messages; Keras's version; recorded by itself.
OTHERS = re.compile(
    "(ONEDNN|DNNL)_(VERBOSE.*|JIT_DUMP|JIT_PROFILE.*)|TF_USE_LEGACY_KERAS|TF_ENABLE_ONEDNN_OPTS"
)
_ignored = []  # sentences of what was taken away, until somebody has said them


def prepare():
    """Takes away variables that other programs' users set, and sets TensorFlow's defaults. Call it
    before TensorFlow is imported, and only in a process that is the program's own."""
    for name in COMPILER_FLAGS:
        if os.environ.pop(name, None):
            _ignored.append(f"{name} is ignored, because it may change results or end a run.")
    for name, (form, words) in FORMS.items():
        value = os.environ.get(name)
        if value and not re.fullmatch(form, value, re.IGNORECASE):
            del os.environ[name]
            _ignored.append(f"{name} is ignored, because {value!r} is not {words}.")
    tensorflow_defaults()


def warn_of_ignored():
    """Says once what `prepare` took away."""
    while _ignored:
        warnings.warn(_ignored.pop(0))


def tensorflow_defaults():
    """Sets variables that TensorFlow reads when it is imported, unless the user has set them.

    oneDNN changes the rounding of results, so results.json records whether it was used.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    # Keeps TensorFlow from importing Keras, which takes half a second and 50 MB.
    os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")
    if platform.machine() in ("x86_64", "AMD64"):
        # By default, TensorFlow uses oneDNN on recent processors only. On older ones, too,
        # it makes training a quarter faster.
        os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")


def onednn():
    """Whether the environment asks for oneDNN: "1", "0", or None."""
    value = os.environ.get("TF_ENABLE_ONEDNN_OPTS")
    return {"true": "1", "false": "0"}.get(value and value.lower(), value)


def of_results():
    """The variables that were set on purpose and may change a result's bits: name -> value."""
    return {
        name: value
        for name, value in sorted(os.environ.items())
        if value and OF_RESULTS.fullmatch(name) and not OTHERS.fullmatch(name)
    }


@contextlib.contextmanager
def hidden(prefix, shown=()):
    """Hides variables, within, from a library's import. Args: what their names begin with; names of
    those that stay."""
    names = [name for name in os.environ if name.startswith(prefix) and name not in shown]
    values = {name: os.environ.pop(name) for name in names}
    try:
        yield
    finally:
        os.environ.update(values)
