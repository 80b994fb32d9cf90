"""Images wherever they lie: every way of storing them gives the same pixels."""

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from data.images import Images


def made_up(count, seed, side=4):
    return np.random.default_rng(seed).integers(0, 256, (count, side, side, 3), dtype=np.uint8)


def test_several_arrays_read_as_one_concatenated():
    arrays = [made_up(5, 0), made_up(1, 1), made_up(8, 2)]
    images, expected = Images.of(*arrays), torch.from_numpy(np.concatenate(arrays))
    assert len(images) == 14
    assert images.shape == (14, 4, 4, 3)
    assert images.nbytes == expected.numel()
    for index in (torch.arange(14), torch.tensor([13, 0, 5, 5, 4, 6]), torch.tensor([], dtype=int)):
        batch = images[index]
        assert batch.dtype == torch.uint8
        assert torch.equal(batch, expected[index])


def test_one_array_reads_as_itself():
    array = made_up(6, 3)
    index = torch.tensor([5, 0, 0])
    assert torch.equal(Images.of(array)[index], torch.from_numpy(array)[index])


def test_a_subset_holds_the_chosen_images_in_the_chosen_order_and_copies_none():
    arrays = [made_up(5, 0), made_up(7, 1)]
    whole = torch.from_numpy(np.concatenate(arrays))
    chosen = torch.tensor([11, 2, 2, 6])
    subset = Images.of(*arrays).subset(chosen)
    assert len(subset) == 4
    assert torch.equal(subset[torch.arange(4)], whole[chosen])
    assert torch.equal(subset.subset(torch.tensor([3, 0]))[torch.arange(2)], whole[[6, 11]])
    arrays[1][6] = 0  # position 11, through the array that the images still share
    assert not subset[torch.tensor([0])].any()


def test_an_empty_array_among_others_changes_nothing():
    arrays = [made_up(0, 0), made_up(3, 1), made_up(0, 2)]
    assert torch.equal(Images.of(*arrays)[torch.arange(3)], torch.from_numpy(arrays[1]))


def test_a_map_is_read_without_a_warning_or_a_copy(tmp_path):
    array = made_up(9, 4)
    np.save(tmp_path / "pool.npy", array)
    mapped = np.load(tmp_path / "pool.npy", mmap_mode="c")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        images = Images.of(mapped, made_up(2, 5))
        batch = images[torch.tensor([8, 1])]
    assert torch.equal(batch, torch.from_numpy(array)[[8, 1]])
    changed = np.load(tmp_path / "pool.npy", mmap_mode="r+")
    changed[8] = 7
    changed.flush()
    assert (images[torch.tensor([8])] == 7).all()  # it is the file, not a copy of it


@pytest.mark.parametrize("part", [slice(3, 8), slice(0, 4), slice(None, None, 2)])
def test_a_part_of_a_map_is_that_part(tmp_path, part):
    array = made_up(9, 4)
    np.save(tmp_path / "pool.npy", array)
    mapped = np.load(tmp_path / "pool.npy", mmap_mode="c")[part]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        images = Images.of(mapped)
    expected = torch.from_numpy(array[part].copy())
    assert torch.equal(images[torch.arange(len(expected))], expected)


def test_reading_never_writes_to_the_file(tmp_path):
    array = made_up(4, 7)
    np.save(tmp_path / "pool.npy", array)
    images = Images.of(np.load(tmp_path / "pool.npy", mmap_mode="c"))
    images[torch.arange(4)].zero_()  # a batch is the caller's own
    images.tensors[0].zero_()  # and even the map itself is copy-on-write
    assert (np.load(tmp_path / "pool.npy") == array).all()


def test_on_the_cpu_the_images_stay_where_they_are():
    images = Images.of(made_up(3, 8))
    assert images.to(torch.device("cpu")) is images


def test_a_copy_holds_every_distinct_image_once(monkeypatch):
    arrays = [made_up(5, 0), made_up(7, 1)]
    chosen = torch.tensor([11, 2, 2, 6, 11, 0])
    images = Images.of(*arrays).subset(chosen)
    elsewhere = images.to(torch.device("meta"))  # a device that can be had anywhere
    assert elsewhere.device.type == "meta" and images.device.type == "cpu"
    assert len(elsewhere.tensors[0]) == 4 and elsewhere.shape == images.shape
    distinct, index = chosen.unique(return_inverse=True)
    copied = Images.of(*arrays).subset(distinct)._copied(torch.device("cpu"), index, chunk=3)
    assert len(copied.tensors[0]) == 4
    assert torch.equal(copied[torch.arange(6)], images[torch.arange(6)])
    assert torch.equal(
        copied.subset(torch.tensor([4, 1]))[slice(None)], images[torch.tensor([4, 1])]
    )


@pytest.mark.skipif(
    not Path("/proc/self/smaps_rollup").exists(), reason="Linux says what is mapped"
)
def test_what_was_released_is_no_longer_counted_and_can_be_read_again(tmp_path):
    def resident():
        rollup = Path("/proc/self/smaps_rollup").read_text()
        return int(rollup.split("Rss:")[1].split()[0]) * 1024

    array = made_up(2000, 9, side=64)  # 25 MB
    np.save(tmp_path / "pool.npy", array)
    whole = Images.of(np.load(tmp_path / "pool.npy", mmap_mode="c"), made_up(3, 1, side=64))
    images = Images.joined(whole).subset(torch.arange(2003))
    for index in torch.arange(2003).split(100):
        images[index]
    before = resident()
    images.release_pages()
    assert before - resident() > array.nbytes // 2
    assert torch.equal(images[torch.arange(2000)], torch.from_numpy(array))
