"""The C library's memory allocator, told to keep what a network will want again."""

import ctypes

# parameters of glibc's mallopt(3)
_M_TRIM_THRESHOLD = -1
_M_MMAP_MAX = -4


def keep_freed_memory() -> bool:
    """Let this process keep the memory that it frees, for its next tensors on the CPU.

    glibc maps large pieces, such as the feature maps of an image, anew for each tensor, and the
    system fills them with zeros page by page: a third of the time of some models (docs/
    PERFORMANCE.md). With this they come from memory that was used before; the process stays as
    large as it once was. Call it before the first large tensor is made.

    Returns:
        Whether the allocator took it; only glibc's knows how.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    return bool(mallopt(_M_MMAP_MAX, 0) and mallopt(_M_TRIM_THRESHOLD, -1))
