"""Reads the headers of tars of WebDataset's layout; damage and traps are bounded."""

import lzma
import tarfile
import zlib

# Those of the formats that `align_jax.pictures` reads, AVIF even if Pillow lacks it,
# and two more. A report counts the pictures that cannot be read.
IMAGE_SUFFIXES = (
    *("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "avif"),
    *("jfif", "jpe", "apng", "avifs", "jp2", "ppm"),
)
MAX_HEADER_BYTES = 2**20

# The type stubs of the standard library leave this class out.
_END_MARK: type[tarfile.HeaderError] = vars(tarfile)["EOFHeaderError"]
DAMAGE = (tarfile.TarError, OSError, EOFError, zlib.error, lzma.LZMAError, ValueError)


class Tar(tarfile.TarFile):
    """A tar that is read from its beginning to its end.

    Attributes:
      members: headers that were read; tarfile keeps all of them.
      marked_end: whether the block of zeros that ends a tar was read.
    """

    members: list[tarfile.TarInfo]
    marked_end = False


class Member(tarfile.TarInfo):
    """A header of a tar; bounds its extensions and sets the tar's `marked_end`."""

    def _proc_gnusparse_10(self, following: tarfile.TarInfo, *_: object) -> None:
        """Marks a member as sparse; its map, which may be of any size, is not read."""
        following.sparse = b""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> "Member":
        """Reads a header; raises ReadError if its extension is too long."""
        member = super().frombuf(buf, encoding, errors)
        if member.type in b"LKxgX" and member.size > MAX_HEADER_BYTES:
            raise tarfile.ReadError("too long a header")
        return member

    @classmethod
    def fromtarfile(cls, tar: tarfile.TarFile) -> "Member":
        """Reads the next header of a tar."""
        try:
            return super().fromtarfile(tar)
        except _END_MARK:
            if isinstance(tar, Tar):
                tar.marked_end = True
            raise
