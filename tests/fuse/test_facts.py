"""Each request's facts reach its handler."""

from __future__ import annotations

from toymount import Mounter

PAGE = 4096


def test_write_back_of_a_mapping_is_told_from_write(toy: Mounter) -> None:
    daemon = toy()
    daemon.put("f", bytes(2 * PAGE))
    daemon.run(
        "fd=os.open(path,os.O_RDWR)\n"
        "os.pwrite(fd,b'w',10)\n"
        "m=mmap.mmap(fd,0)\n"
        "m[4096]=1\n"
        "m.flush()\n",
        "f",
    )
    write, write_back = daemon.facts("write")
    assert not write["is_write_back"]
    assert (write["offset"], write["size"]) == (10, 1)
    assert write_back["is_write_back"]
    assert (write_back["offset"], write_back["size"]) == (PAGE, PAGE)
    assert write_back["pid"] == 0
