"""tf-slim, mended for today's TensorFlow. Import it from here: `from harness.slim import slim`.

tf-slim 1.1.0, the newest release, uses two internal names that TensorFlow moved in 2.15. They
are put back before its first use, unless they are there.
"""

import tensorflow.compat.v1 as tf
from tensorflow.python.framework import ops
from tensorflow.python.ops import control_flow_ops

if not hasattr(ops, "Tensor"):
    ops.Tensor = tf.Tensor
if not hasattr(control_flow_ops, "cond"):
    control_flow_ops.cond = tf.cond

import tf_slim as slim  # noqa: E402, F401
