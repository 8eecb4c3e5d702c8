"""Sizes of the kernel's structures, from <linux/fuse.h>."""

from __future__ import annotations

import pytest

from nfsfuse.fuse import abi

SIZES = {
    "OUT_HEADER": 16,
    "INIT_IN": 64,
    "INIT_OUT": 64,
    "INTERRUPT_IN": 8,
    "LK_IN": 48,
    "LK_OUT": 24,
    "FALLOCATE_IN": 32,
    "LSEEK_IN": 24,
    "COPY_FILE_RANGE_IN": 56,
    "WRITE_OUT": 8,
    "READ_IN": 40,
    "CREATE_IN": 16,
    "STATX_IN": 24,
    "STATX_OUT": 32,
    "STATX": 256,
    "ATTR": 88,
    "ENTRY_OUT": 40,
    "OPEN_OUT": 16,
    "DIRENT": 24,
    "NOTIFY_INVAL_INODE_OUT": 24,
    "NOTIFY_INVAL_ENTRY_OUT": 16,
    "NOTIFY_DELETE_OUT": 24,
    "NOTIFY_STORE_OUT": 24,
}


@pytest.mark.parametrize(("name", "size"), SIZES.items())
def test_size(name: str, size: int) -> None:
    assert getattr(abi, name).size == size


def test_split_seconds() -> None:
    assert abi.split_seconds(2.5) == (2, 500_000_000)
