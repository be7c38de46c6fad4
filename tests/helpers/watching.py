"""A mapper that notes how the process that runs it was started."""

import multiprocessing
from pathlib import Path


class StartMethod:
    """Notes by which method this process would start others: a fork's is that of its parent."""

    def __init__(self, mapper, file):
        self.mapper = mapper
        self.file = file

    def __call__(self, record):
        Path(self.file).write_text(multiprocessing.get_start_method())
        return self.mapper(record)
