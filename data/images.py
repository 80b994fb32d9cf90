"""Many images as uint8, wherever they lie: `images[index]` gives a batch."""

import mmap
from itertools import accumulate

import numpy as np
import torch


class Images:
    """N images of S x S pixels, read from one or more uint8 tensors (n,S,S,3), on one device.

    Nothing is copied before a batch is asked for, and nothing is kept for a single image, so a pool
    that is larger than memory streams from its cache.  `images[index]`, with index (B,) int64 on
    any device or a slice, is uint8 (B,S,S,3) on `device`; it may be a view, so do not write to it.
    """

    def __init__(self, tensors, chosen=None, maps=()):
        """All the images of `tensors`, one tensor after the other; or those at `chosen` (N,) int64.

        maps: the mmap objects that some of the tensors read from, see `release_pages`
        """
        self.tensors, self.chosen, self.maps = tensors, chosen, maps
        self._starts = torch.tensor([0, *accumulate(map(len, tensors))])

    @classmethod
    def of(cls, *arrays):
        """The images of NumPy arrays uint8 (n,S,S,3), one array after the other.

        A memory map is opened copy-on-write: torch warns of one that is read-only.
        """
        maps = [array.base for array in arrays if isinstance(array.base, mmap.mmap)]
        return cls([torch.from_numpy(array) for array in arrays], maps=maps)

    @classmethod
    def joined(cls, *several):
        """Several Images, all on the CPU, as one."""
        tensors = [tensor for images in several for tensor in images.tensors]
        maps = [file for images in several for file in images.maps]
        if all(images.chosen is None for images in several):
            return cls(tensors, maps=maps)
        starts = accumulate((int(images._starts[-1]) for images in several), initial=0)
        chosen = [
            start + (torch.arange(len(images)) if images.chosen is None else images.chosen)
            for start, images in zip(starts, several, strict=False)
        ]
        return cls(tensors, torch.cat(chosen), maps)

    def __len__(self):
        return int(self._starts[-1]) if self.chosen is None else len(self.chosen)

    @property
    def shape(self):
        return (len(self), *self.tensors[0].shape[1:])

    @property
    def nbytes(self):
        return int(np.prod(self.shape))

    @property
    def device(self):
        return self.tensors[0].device

    def __getitem__(self, index):
        if isinstance(index, slice):
            if len(self.tensors) == 1 and self.chosen is None:
                return self.tensors[0][index]
            index = torch.arange(*index.indices(len(self)), device=self.device)
        index = torch.as_tensor(index, device=self.device)
        index = index if self.chosen is None else self.chosen[index]
        if len(self.tensors) == 1:
            return self.tensors[0][index]
        source = torch.searchsorted(self._starts, index, right=True) - 1
        index = index - self._starts[source]
        batch = torch.empty((len(index), *self.shape[1:]), dtype=torch.uint8)
        for number in source.unique().tolist():
            here = source == number
            batch[here] = self.tensors[number][index[here]]
        return batch

    def subset(self, index):
        """The images at `index` (M,) int64, in that order; none is copied."""
        index = torch.as_tensor(index, device=self.device)
        return Images(self.tensors, index if self.chosen is None else self.chosen[index], self.maps)

    def release_pages(self):
        """Let the system count the pages read from files so far as its own, not this process's.

        It keeps them as long as it has room for them, so that reading them again costs little.
        """
        if hasattr(mmap, "MADV_DONTNEED"):  # not on Windows
            for file in self.maps:
                file.madvise(mmap.MADV_DONTNEED)

    def to(self, device):
        """These images on `device`; an image that stands here several times is copied once.

        The result is `self`, to be read batch by batch, on a CPU, where the system's file cache
        holds the images already, and where the copy would take more than half of a GPU's memory.
        """
        if device.type == "cpu":
            return self
        images, index = self, None
        if self.chosen is not None:
            distinct, index = self.chosen.unique(return_inverse=True)
            images = Images(self.tensors, distinct)
        if device.type == "cuda" and images.nbytes > torch.cuda.mem_get_info(device)[0] // 2:
            return self
        return images._copied(device, index)

    def _copied(self, device, index, chunk=4096):
        """A copy of the images on `device`, `chunk` at a time; or of those at `index` of it."""
        pixels = torch.empty(self.shape, dtype=torch.uint8, device=device)
        for first in range(0, len(self), chunk):
            pixels[first : first + chunk] = self[first : first + chunk].to(device)
        return Images([pixels], None if index is None else index.to(device))
