"""What a run may use of the machine: cores, memory, device; and what its bits depend on."""

import math

import tensorflow as tf_v2
import tensorflow.compat.v1 as tf

from harness import cgroups, environment, memory, processor, thread_limit
from harness.errors import Failed

BYTES_OF_A_WEIGHT = 16  # its value, its gradient and Adam's two moments, 4 bytes each


# --- What a session may use ---


def session_settings(device, threads, num_tasks, sharing):
    """Chooses the device and how it is used. Call it before a graph is built: TensorFlow takes
    all memory of each GPU that it sees, and creates its threads, once for the process.

    Args:
      device: "cpu" or "gpu".
      threads: cores to use; 0 for all that the process may use.
      num_tasks: number of tasks.
      sharing: what their towers share, as `names.sharing_of` returns it.

    Returns:
      A `tf.ConfigProto` for every session.

    Raises:
      Failed: there is no GPU, TensorFlow was used before in this process, or the system lets it
        start too few threads.
    """
    gpus = tf_v2.config.list_physical_devices("GPU")
    if device == "gpu" and not gpus:
        raise Failed(
            "--device=gpu: TensorFlow finds no GPU. Install its libraries with pip install"
            " 'tensorflow[and-cuda]', or leave out the flag."
        )
    try:
        if device == "gpu":
            # A resumed run ends with the same bits on a GPU, too.
            tf_v2.config.experimental.enable_op_determinism()
            return tf.ConfigProto(gpu_options=tf.GPUOptions(allow_growth=True))
        tf_v2.config.set_visible_devices([], "GPU")
        thread_limit.check(cores(threads))
        return thread_settings(cores(threads), num_tasks, sharing)
    except RuntimeError:
        raise Failed(
            "TensorFlow has already started its threads in this process. Start train.py in a new"
            " process, or before any other use of TensorFlow."
        ) from None


def thread_settings(num_cores, num_tasks, sharing):
    """Gives every tower an equal share of the cores. That is faster than all cores on one
    tower's op after the other, except for dense units: their matrix product is larger than
    both towers.

    Returns: a `tf.ConfigProto`. Raises: RuntimeError, the threads are there.
    """
    num_towers = 1 if sharing in ("dense", "hard_sharing") else min(num_tasks, num_cores)
    threads = num_cores // num_towers
    tf_v2.config.threading.set_intra_op_parallelism_threads(threads)
    return tf.ConfigProto(
        device_count={"GPU": 0},
        intra_op_parallelism_threads=threads,
        inter_op_parallelism_threads=max(num_towers, 2),  # a tower's two gradients, at least
    )


def cores(threads=0):
    """How many cores this process may use: `threads`, or what the system allows it."""
    return threads or min([thread_limit.cores(), *(math.ceil(limit) for limit in cgroups.cores())])


# --- Memory ---


def check_memory(num_weights, advice):
    """Raises: Failed, so many weights need more memory than this process may use.

    Args:
      num_weights: number of trained weights.
      advice: what to choose in place of this network.
    """
    needed, allowed = num_weights * BYTES_OF_A_WEIGHT, memory.allowed()
    if needed > allowed:
        raise Failed(
            f"the network has {num_weights:,} weights. Training them takes at least"
            f" {needed / 1e9:,.1f} GB of memory, and this process may use {allowed / 1e9:,.1f} GB."
            f" Choose {advice}."
        )


# --- What the bits of a result depend on ---


def description(threads, precision="float32"):
    """What the order of sums, and so the last bits of a result, may depend on."""
    found = {
        **processor.description(),
        "onednn": environment.onednn(),
        "variables": environment.of_results(),
        "threads": cores(threads),
    }
    if precision != "float32":
        found[precision] = processor.bfloat16_instructions()
    return found


def device_name(device):
    """Returns: "cpu", or the name of the GPU."""
    if device == "cpu":
        return "cpu"
    first = tf_v2.config.list_physical_devices("GPU")[0]
    return tf_v2.config.experimental.get_device_details(first).get("device_name", "gpu")
