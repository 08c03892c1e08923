"""The files of one artefact: their names, and how they appear together or not at all."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path

from loop_singular_bit.container.layout import RUN_ALIGN_BYTES, align_up
from loop_singular_bit.container.partial import PartialFile, sync_directory
from loop_singular_bit.errors import UsageError


def shard_path(path: Path, number: int) -> Path:
    """The file of shard `number`: `model.lsb`, `model-00001.lsb`, `model-00002.lsb`, ..."""
    return path.with_name(f"{path.stem}-{number:05d}{path.suffix}") if number else path


def further_shards(path: Path, ending: str = "") -> Iterator[tuple[int, Path]]:
    """Number and path of what lies beside `path` under the name of a further shard and `ending`."""
    pattern = re.compile(re.escape(path.stem) + r"-(\d{5})" + re.escape(path.suffix + ending))
    for found in sorted(path.parent.iterdir()):
        match = pattern.fullmatch(found.name)
        if match is not None and int(match[1]) > 0:
            yield int(match[1]), found


class PartialShards:
    """The files of an artefact on their way to `path` and its further shards.

    The first file's lock covers them all. Raises what PartialFile raises, and UsageError when a
    further shard exists (unless `overwrite`).
    """

    def __init__(
        self,
        path: Path,
        overwrite: bool = False,
        expected_bytes: int = 0,
        kept: Sequence[int] | None = None,
    ) -> None:
        """kept: bytes of each file that a stopped process has finished, [0] for none; what is
        behind them is cut off, and `discard` leaves the files. None: they come and go together."""
        self._path = path
        self._overwrite = overwrite
        self._resumable = kept is not None
        sizes = [0] if kept is None else kept
        self._missing_bytes = max(0, expected_bytes - sum(sizes))
        self._files = [PartialFile(path, overwrite, self._missing_bytes, sizes[0])]
        with ExitStack() as stack:
            stack.callback(self.discard)
            self._clear(len(sizes))
            for number, size_bytes in enumerate(sizes[1:], 1):
                self._files.append(PartialFile(shard_path(path, number), overwrite, 0, size_bytes))
            stack.pop_all()

    def write(self, offset: int, data: bytes | memoryview, shard: int = -1) -> None:
        """Writes all of `data` at `offset` of a shard, the newest unless told."""
        self._files[shard].write(offset, data)

    def next_shard(self, keep_bytes: int) -> None:
        """Opens the next shard; what the newest has of the run behind `keep_bytes` moves there."""
        old = self._files[-1]
        self._missing_bytes = max(0, self._missing_bytes - keep_bytes)
        path = shard_path(self._path, len(self._files))
        new = PartialFile(path, self._overwrite, self._missing_bytes)
        self._files.append(new)
        old.copy_to(align_up(keep_bytes, RUN_ALIGN_BYTES), new, RUN_ALIGN_BYTES)
        old.truncate(keep_bytes)

    def sync(self) -> None:
        """Makes everything written so far durable, under the names it has now."""
        for file in self._files:
            file.sync()
        sync_directory(self._path.parent)

    def commit(self, sizes: Sequence[int]) -> None:
        """Makes the files, as long as `sizes` says, durable and gives them their names.

        The first file comes last: until then there is no artefact, or an old one whose shards are
        not its own any more, which a reader refuses.
        """
        for file, size_bytes in zip(self._files, sizes, strict=True):
            file.finish(size_bytes)
        with ExitStack() as undo:
            for number, file in enumerate(self._files[1:], 1):
                file.publish()
                undo.callback(self._withdraw, number)
            sync_directory(self._path.parent)
            self._files[0].publish()
            undo.pop_all()
        self._remove_leftovers()
        sync_directory(self._path.parent)

    def discard(self) -> None:
        """Removes what has not got its name, or leaves it to a later process where that may go on.
        Does nothing a second time."""
        # The first file holds the lock, so it goes last.
        for file in reversed(self._files):
            if self._resumable:
                file.release()
            else:
                file.discard()

    def _clear(self, kept: int) -> None:
        """Looks for shards that would be overwritten, and removes what a killed process left
        behind the first `kept` files."""
        for number, path in further_shards(self._path):
            if self._resumable:  # killed between two names
                self._withdraw(number)
            elif not self._overwrite:
                raise UsageError(f"{path}: exists; remove it or choose another output directory")
        for number, path in further_shards(self._path, ".partial"):
            if number >= kept:
                path.unlink()

    def _withdraw(self, number: int) -> None:
        """Takes the name from a further shard again."""
        path = shard_path(self._path, number)
        if self._resumable:
            path.replace(path.with_name(f"{path.name}.partial"))
        else:
            path.unlink()

    def _remove_leftovers(self) -> None:
        """Removes the shards of an older artefact that had more."""
        if self._overwrite:
            for number, path in further_shards(self._path):
                if number >= len(self._files):
                    with suppress(FileNotFoundError):
                        path.unlink()
