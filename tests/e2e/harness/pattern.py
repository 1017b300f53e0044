"""Bytes that can be checked at any offset: a seed names a stream."""

import hashlib
import random

BLOCK_BYTES = (1 << 20) - 3  # not a multiple of any size that a stack likes


class Pattern:
    def __init__(self, seed):
        self._block = random.Random(seed).randbytes(BLOCK_BYTES)
        self._twice = memoryview(self._block + self._block)

    def slice(self, offset, length):
        """`length` bytes (at most one block) of the stream from `offset`."""
        assert length <= BLOCK_BYTES
        start = offset % BLOCK_BYTES
        return self._twice[start:start + length]

    def chunks(self, total, chunk_bytes=256 * 1024):
        offset = 0
        while offset < total:
            size = min(chunk_bytes, total - offset)
            yield self.slice(offset, size)
            offset += size

    def sha256(self, total):
        digest = hashlib.sha256()
        for chunk in self.chunks(total):
            digest.update(chunk)
        return digest.hexdigest()

    def write_file(self, path, total):
        with open(path, "wb") as file:
            for chunk in self.chunks(total, 1 << 19):
                file.write(chunk)
