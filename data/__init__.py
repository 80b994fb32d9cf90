"""Images: labelled sets and unlabelled pools as uint8 arrays.

To be read in this order:

images      many images as uint8, wherever they lie, batch by batch
splits      labelled, validation and held-out images
labelled    cifar100, cifar10, digits, class folders, and pools whose folder names are the classes
sources     what a pool is made of: heldout, named pools, folders, tar shards
pool        several sources as one
duplicates  pool images that equal, or nearly equal, a labelled one
selection   the files that step 2 writes
augment     whole batches, augmented, mixed and normalised on their device
policies    TrivialAugment for whole batches

What carries these:

listing     the image files in folders and tar shards: names, sizes, blocks
cache       decoded images on the disk, memory-mapped
workers     decoding in processes of our own
remote      tar shards in object storage: their names, and the selected members
decode      bytes -> RGB pixels, the square crop, hashes
"""
