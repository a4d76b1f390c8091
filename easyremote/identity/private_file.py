"""Files that only this user may read: keys, tokens and node secrets.

Rules of this file. 1) A private file is written to the side, synced and renamed, so that a crash
leaves the old one or the new one. 2) It has mode 0600 from its first byte on. 3) A file that
others may read is reported and closed to them; one that belongs to another user is refused.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from ..errors import AuthenticationError
from ..log import Log

PRIVATE_MODE = 0o600
SIZE_BYTES_MAX = 64 * 1024
"""No private file of ours comes near; a larger one is not ours."""

_log = Log("identity")


def write_private(path: Path, data: bytes) -> None:
    """Write `data` as the whole content of `path`, readable by this user alone.

    The data are on the disk when this returns.
    """
    aside = path.with_name(f".{path.name}.{os.getpid()}.{os.urandom(4).hex()}")
    descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, PRIVATE_MODE)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def create_private(path: Path, data: bytes) -> bytes:
    """Write `data` to `path` unless it exists; return what the file holds now.

    Several processes may do this at once: all of them return the same bytes.
    """
    aside = path.with_name(f".{path.name}.{os.getpid()}.{os.urandom(4).hex()}")
    write_private(aside, data)
    try:
        # A link is made or fails, as a whole; a rename would replace the other one's file.
        os.link(aside, path)
    except FileExistsError:
        return read_private(path)
    finally:
        aside.unlink(missing_ok=True)
    _sync_folder(path.parent)
    return data


def read_private(path: Path) -> bytes:
    """Return the content of a private file.

    Raises:
        FileNotFoundError: There is no such file.
        AuthenticationError: It belongs to another user, or it is no file of ours.
    """
    try:
        file = path.open("rb")
    except PermissionError as error:
        raise AuthenticationError(
            f"{path} cannot be read by this user; correct its owner"
        ) from error
    with file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode) or status.st_size > SIZE_BYTES_MAX:
            raise AuthenticationError(f"{path} is not a file that EasyRemote wrote; remove it")
        # POSIX only: elsewhere the mode says nothing.
        if hasattr(os, "getuid"):
            if status.st_uid not in (os.getuid(), 0):
                raise AuthenticationError(
                    f"{path} belongs to another user (uid {status.st_uid}), so what it says is "
                    f"not trusted. Remove it, or set EASYREMOTE_HOME to a folder of your own."
                )
            if status.st_mode & 0o077 and status.st_uid == os.getuid():
                _log.warning(
                    "a private file was readable by others; closed it to them",
                    path=path,
                    mode=oct(stat.S_IMODE(status.st_mode)),
                    advice="if others use this machine, revoke the token in it",
                )
                os.fchmod(file.fileno(), PRIVATE_MODE)
        return file.read()


def close_to_others(path: Path) -> None:
    """Take the rights of others to a file of ours away, if they have any and if it is there."""
    if not hasattr(os, "getuid"):
        return
    try:
        status = path.stat()
    except FileNotFoundError:
        return
    if status.st_mode & 0o077 and status.st_uid == os.getuid():
        _log.warning("a private file was open to others; closed it to them", path=path)
        path.chmod(PRIVATE_MODE)


def _sync_folder(folder: Path) -> None:
    """Make the names in `folder` durable, where the system can do that."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY | getattr(os, "O_DIRECTORY", 0))
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
