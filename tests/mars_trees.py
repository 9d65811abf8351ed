"""Small trees in the layout of MARS, for the tests of the sets that have it."""

import dataclasses

import numpy as np
from builder_trees import write
from scipy.io import savemat


@dataclasses.dataclass
class Row:
    """A tracklet as a test lays it out; its frames are numbered from 1."""

    folder: str
    camera: int
    tracklet: int
    length: int

    @property
    def name(self):
        return f"{self.folder}C{self.camera}T{self.tracklet:04d}"

    @property
    def pid(self):
        return -1 if self.folder == "00-1" else int(self.folder)

    @property
    def names(self):
        return [f"{self.name}F{frame:03d}.jpg" for frame in range(1, self.length + 1)]

    @property
    def files(self):
        return [f"{self.folder}/{name}" for name in self.names]


def write_tables(info, train, test, queries):
    """The lists, as MATLAB writes them."""
    info.mkdir(parents=True, exist_ok=True)
    for part, rows, newline in (("train", train, "\r\n"), ("test", test, "\n")):
        (info / f"{part}_name.txt").write_text(newline.join(n for row in rows for n in row.names) + newline, newline="")
        ends = np.cumsum([row.length for row in rows])
        table = [[end - row.length + 1, end, row.pid, row.camera] for row, end in zip(rows, ends.tolist(), strict=True)]
        savemat(info / f"tracks_{part}_info.mat", {f"track_{part}_info": np.array(table, np.int32)})
    savemat(info / "query_IDX.mat", {"query_IDX": np.array([queries], np.uint16)})


def write_tree(root, train, test, queries):
    write_tables(root / "info", train, test, queries)
    write(root / "bbox_train", [file for row in train for file in row.files])
    write(root / "bbox_test", [file for row in test for file in row.files])
