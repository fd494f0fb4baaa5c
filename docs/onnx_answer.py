"""Answers of an exported model, in NumPy and onnxruntime alone: for a device that only answers.

    python onnx_answer.py small.onnx shard.npz

It prints the most likely class of each example, and the most memory that the process has had, in MB (10^6 bytes).
"""

import resource
import sys

import numpy as np
import onnxruntime as ort

model, data = sys.argv[1:3]
options = ort.SessionOptions()
options.intra_op_num_threads = 1
# Memory is taken when it is needed, not in advance.
options.enable_cpu_mem_arena = False
session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
labels = [int(session.run(None, {"x": one[None]})[0].argmax()) for one in np.load(data)["x"]]
print(labels)  # noqa: T201
print(f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000:.1f} MB", file=sys.stderr)  # noqa: T201
