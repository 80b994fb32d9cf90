"""Many images as uint8, wherever they lie: `images[index]` gives a batch."""

from mmap import mmap

import numpy as np
import torch


class Images:
    """N images of S x S: rows of one or more uint8 tensors (n,S,S,3), memory-mapped or not.

    Nothing is copied before a batch is asked for, so a pool larger than memory streams from its
    cache.  `images[index]` with index (B,) int64 is uint8 (B,S,S,3), on the CPU.
    """

    device = torch.device("cpu")

    def __init__(self, tensors, part, row):
        """Image i is tensors[part[i]][row[i]]; `part`, `row`: (N,) int64."""
        self.tensors, self.part, self.row = tensors, part, row

    @classmethod
    def of(cls, *arrays):
        """All the rows of NumPy arrays (n,S,S,3) uint8, one after the other."""
        tensors = [torch.from_numpy(_silenced(array)) for array in arrays]
        part = torch.cat([torch.full((len(array),), i) for i, array in enumerate(arrays)])
        return cls(tensors, part, torch.cat([torch.arange(len(array)) for array in arrays]))

    def __len__(self):
        return len(self.row)

    @property
    def shape(self):
        return (len(self), *self.tensors[0].shape[1:])

    @property
    def nbytes(self):
        return int(np.prod(self.shape))

    def __getitem__(self, index):
        part, row = self.part[index], self.row[index]
        if len(self.tensors) == 1:
            return self.tensors[0][row]
        batch = torch.empty((len(row), *self.shape[1:]), dtype=torch.uint8)
        for number, tensor in enumerate(self.tensors):
            here = part == number
            batch[here] = tensor[row[here]]
        return batch

    def subset(self, index):
        """The images at `index` (M,), still uncopied."""
        return Images(self.tensors, self.part[index], self.row[index])

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
    whole = isinstance(array, np.memmap) and isinstance(array.base, mmap)  # a slice has no offset
    if whole and array.flags.c_contiguous:
        return np.memmap(array.filename, array.dtype, "c", array.offset, array.shape)
    return array.copy()
