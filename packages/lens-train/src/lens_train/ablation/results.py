"""What finished cells found, kept in a folder that may outlive the run: committed, it makes a run in sittings.

    results/captions/dense-1.parquet                  the cell's rows; written last, so it stands for the whole
    results/captions/dense-1/gallery/model/0000.png   a picture that its stage `gallery` made

A file with another key than the cell's is the result of other settings. Nothing touches it until the cell's own result
takes its place.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pyarrow as pa

from lens_core.errors import ArtifactError
from lens_core.storage import urls
from lens_train.ablation.rows import SCHEMA, read_rows, rows_bytes

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from lens_core.pipeline.progress import Progress
    from lens_core.storage.artifacts import Artifact
    from lens_train.ablation.cells import Cell

__all__ = ["Results"]


class Results:
    """The results of an ablation's cells.

    Args:
        url: their folder.
    """

    def __init__(self, url: str):
        self.url = url

    def has(self, cell: Cell, progress: Progress) -> bool:
        """Whether a cell's result is there; if something else is in its place, the user is told."""
        file = self._file(cell)
        if not urls.exists(file):
            return False
        try:
            keys = self.rows(cell)["key"].unique().to_pylist()
        except ArtifactError as error:
            progress.warn(f"{error}; the cell is run again")
            return False
        if keys != [cell.key]:
            progress.note(f"{file} is of other settings or data; it stays until this cell's own result replaces it")
            return False
        return True

    def rows(self, cell: Cell) -> pa.Table:
        """What a cell found; the ablation may have been renamed since.

        Raises:
            ArtifactError: the file is damaged.
            StorageError: it is not there.
        """
        rows = read_rows(self._file(cell))
        return rows.set_column(0, SCHEMA.field("ablation"), pa.array([cell.ablation] * len(rows)))

    def keep(self, cell: Cell, rows: pa.Table, artifacts: Iterable[Artifact]) -> None:
        """Write a cell's rows, and the pictures that its `sample` stages drew."""
        folder = self._folder(cell)
        urls.remove(folder, recursive=True)
        for artifact in artifacts:
            for entry in artifact.files if artifact.type == "samples" else ():
                if entry.path.endswith(".png"):
                    urls.write_bytes(urls.join(folder, artifact.name, entry.path), artifact.read_bytes(entry.path))
        urls.write_bytes(self._file(cell), rows_bytes(rows))

    def pictures(self, cell: Cell) -> Iterator[tuple[str, bytes]]:
        """The pictures of a finished cell, by path; those that have been removed are missed by nobody."""
        folder = self._folder(cell)
        for path in urls.walk(folder) if urls.exists(folder) else ():
            yield path, urls.read_bytes(urls.join(folder, path))

    def _file(self, cell: Cell) -> str:
        return urls.join(self.url, f"{cell.name}.parquet")

    def _folder(self, cell: Cell) -> str:
        return urls.join(self.url, cell.name)
