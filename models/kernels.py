"""Which of torch's kernels run."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

_ONE = threading.RLock()


@contextmanager
def plain_kernels() -> Iterator[None]:
    """Let layers such as LSTM and attention run as the simple operators that they are made of, one thread at a time."""
    # What is switched is switched for the whole process; two blocks that overlap would leave it off.
    with _ONE:
        yield from _switched()


def _switched() -> Iterator[None]:
    fast, library = torch.backends.mha.get_fastpath_enabled(), torch._C._get_mkldnn_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    torch._C._set_mkldnn_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch._C._set_mkldnn_enabled(library)
        torch.backends.mha.set_fastpath_enabled(fast)
