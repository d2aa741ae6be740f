"""Products of bfloat16 numbers, for processors that multiply them faster than float32.

With `precision="bfloat16"`, conv layers, fc_3 and the units that are matrix products round both
factors and the product to bfloat16, which keeps 8 bits of float32's 24; sums inside a product
are float32. All else stays float32: variables, batch norm, losses, gradients of variables, Adam.
A checkpoint is the same in either precision. What it is worth stands in tests/README.md.

With float32, a cast adds nothing to the graph.
"""

import tensorflow.compat.v1 as tf

from harness.slim import slim


def rounded(getter, name, *args, dtype=None, **kwargs):
    """A getter for tf.variable_scope. A layer whose input is bfloat16 asks for weights of that
    type: it receives those of a float32 variable, rounded."""
    if dtype != tf.bfloat16:
        return getter(name, *args, dtype=dtype, **kwargs)
    return tf.cast(getter(name, *args, dtype=tf.float32, **kwargs), dtype)


def batch_norm(x, **kwargs):
    """slim.batch_norm in float32, of a product of either precision."""
    return slim.batch_norm(tf.cast(x, tf.float32), **kwargs)


def l2_regularizer(scale):
    """slim.l2_regularizer of the variable's own values, not of the rounded ones."""
    of_values = slim.l2_regularizer(scale)
    return lambda w: of_values(w.op.inputs[0] if w.dtype == tf.bfloat16 else w)
