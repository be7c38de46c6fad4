"""Makes the C library's memory allocator keep freed memory."""

import ctypes

# parameters of glibc's mallopt(3)
_M_TRIM_THRESHOLD = -1
_M_MMAP_MAX = -4


def keep_freed_memory() -> bool:
    """Let this process reuse the memory that it frees for its next tensors on the CPU.

    For every large tensor, such as a feature map, glibc requests new memory, which the system fills
    with zeros page by page: a third of the time of some models (docs/PERFORMANCE.md). With this
    setting it reuses freed memory; the process stays as large as its peak. Call it before the first
    large tensor is made.

    Returns:
        Whether the allocator supports it; only glibc's does.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    return bool(mallopt(_M_MMAP_MAX, 0) and mallopt(_M_TRIM_THRESHOLD, -1))
