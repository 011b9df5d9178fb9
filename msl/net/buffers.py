"""Page-aligned receive buffers that are used again instead of allocated anew."""

from __future__ import annotations

import mmap
import threading
from dataclasses import dataclass

_SMALLEST = 4096


@dataclass(slots=True)
class _Loan:
    memory: mmap.mmap
    leases: int = 1


class Lease:
    """A buffer on loan from a pool; `release` gives it back, and every view of it is void then."""

    __slots__ = ("_loan", "_pool", "view")

    def __init__(self, pool: BufferPool, loan: _Loan) -> None:
        self._pool: BufferPool | None = pool
        self._loan = loan
        self.view = memoryview(loan.memory)

    def share(self) -> Lease:
        """Another lease of the same buffer, which is back when both are released."""
        assert self._pool is not None
        return self._pool._lend_again(self._loan)

    def release(self) -> None:
        """Give the buffer back; a second call does nothing."""
        pool, self._pool = self._pool, None
        if pool is not None:
            pool._take_back(self._loan)


class BufferPool:
    """Buffers in sizes of powers of two; thread-safe.

    It grows to the largest number of buffers that were on loan at once. In a chain that trains, the protocol bounds
    that number by the micro-batches in flight, and each buffer by the largest frame.

    Args:
        keep_bytes: how much of it stays when it is not on loan; all of it by default.
    """

    def __init__(self, keep_bytes: int | None = None) -> None:
        self._free: dict[int, list[mmap.mmap]] = {}
        self._keep_bytes = keep_bytes
        self._lock = threading.Lock()
        self.allocated_bytes = 0
        """Bytes that the pool holds, on loan or not."""
        self.lent_bytes = 0
        """Bytes that are on loan."""

    def lease(self, num_bytes: int) -> Lease:
        """Borrow a buffer of at least `num_bytes`; its start is aligned to a page."""
        size = max(_SMALLEST, 1 << (num_bytes - 1).bit_length())
        with self._lock:
            free = self._free.setdefault(size, [])
            if free:
                memory = free.pop()
            else:
                memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
                self.allocated_bytes += size
            self.lent_bytes += size
            return Lease(self, _Loan(memory))

    def _lend_again(self, loan: _Loan) -> Lease:
        with self._lock:
            loan.leases += 1
            return Lease(self, loan)

    def _take_back(self, loan: _Loan) -> None:
        with self._lock:
            loan.leases -= 1
            if loan.leases:
                return
            memory = loan.memory
            self.lent_bytes -= len(memory)
            idle = self.allocated_bytes - self.lent_bytes
            if self._keep_bytes is not None and idle > self._keep_bytes:
                self.allocated_bytes -= len(memory)  # unmapped as soon as nobody looks at it any more
            else:
                self._free[len(memory)].append(memory)
