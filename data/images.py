"""Many images as uint8, wherever they lie: `images[index]` gives a batch."""

import mmap
from itertools import accumulate

import numpy as np
import torch


class Images:
    """N images of S x S: the rows of one or more uint8 tensors (n,S,S,3), memory-mapped or not.

    Nothing is copied before a batch is asked for, and nothing is kept for every image, so a pool
    larger than memory streams from its cache.  `images[index]` with index (B,) int64, or a slice,
    is uint8 (B,S,S,3), on the CPU.
    """

    device = torch.device("cpu")

    def __init__(self, tensors, chosen=None, maps=()):
        """The rows of all `tensors`, one after the other; or those at `chosen` (N,) int64.

        maps: the mmap objects that some of them read from, see `let_go`
        """
        self.tensors, self.chosen, self.maps = tensors, chosen, maps
        self._starts = torch.tensor([0, *accumulate(map(len, tensors))])

    @classmethod
    def of(cls, *arrays):
        """All the rows of NumPy arrays (n,S,S,3) uint8, one after the other."""
        arrays = [_silenced(array) for array in arrays]
        maps = [
            a.base for a in arrays if isinstance(a, np.memmap) and isinstance(a.base, mmap.mmap)
        ]
        return cls([torch.from_numpy(array) for array in arrays], maps=maps)

    @classmethod
    def joined(cls, *parts):
        """Several Images as one."""
        tensors = [tensor for part in parts for tensor in part.tensors]
        maps = [one for part in parts for one in part.maps]
        if all(part.chosen is None for part in parts):
            return cls(tensors, maps=maps)
        starts = accumulate((int(part._starts[-1]) for part in parts), initial=0)
        rows = [part._rows() + start for start, part in zip(starts, parts, strict=False)]
        return cls(tensors, torch.cat(rows), maps)

    def _rows(self):
        return torch.arange(int(self._starts[-1])) if self.chosen is None else self.chosen

    def __len__(self):
        return int(self._starts[-1]) if self.chosen is None else len(self.chosen)

    @property
    def shape(self):
        return (len(self), *self.tensors[0].shape[1:])

    @property
    def nbytes(self):
        return int(np.prod(self.shape))

    def __getitem__(self, index):
        if isinstance(index, slice):
            index = torch.arange(*index.indices(len(self)))
        rows = index if self.chosen is None else self.chosen[index]
        if len(self.tensors) == 1:
            return self.tensors[0][rows]
        part = torch.searchsorted(self._starts, rows, right=True) - 1
        rows = rows - self._starts[part]
        batch = torch.empty((len(rows), *self.shape[1:]), dtype=torch.uint8)
        for number in part.unique().tolist():
            here = part == number
            batch[here] = self.tensors[number][rows[here]]
        return batch

    def subset(self, index):
        """The images at `index` (M,) int64, still uncopied."""
        chosen = index if self.chosen is None else self.chosen[index]
        return Images(self.tensors, chosen, self.maps)

    def let_go(self):
        """Count what was read so far from files no longer as this process's memory.

        The system keeps it as long as it has room, so that to read it again costs little.
        """
        if hasattr(mmap, "MADV_DONTNEED"):  # not on Windows
            for one in self.maps:
                one.madvise(mmap.MADV_DONTNEED)

    def to(self, device):
        """A uint8 tensor (N,S,S,3) on `device` where that takes at most half of the memory free
        there; otherwise these images as they are, to be streamed batch by batch.

        On a CPU they stay as they are: the page cache already holds them.
        """
        if device.type == "cpu":
            return self
        if device.type == "cuda" and self.nbytes > torch.cuda.mem_get_info(device)[0] // 2:
            return self
        images = torch.empty(self.shape, dtype=torch.uint8, device=device)
        for chunk in torch.arange(len(self)).split(4096):
            images[chunk[0] : chunk[-1] + 1] = self[chunk].to(device)
        return images


def _silenced(array):
    """torch warns of read-only arrays; a copy-on-write map is as safe and silent."""
    if array.flags.writeable:
        return array
    # The offset of a slice is that of the whole.
    whole = isinstance(array, np.memmap) and isinstance(array.base, mmap.mmap)
    if whole and array.flags.c_contiguous:
        return np.memmap(array.filename, array.dtype, "c", array.offset, array.shape)
    return array.copy()
