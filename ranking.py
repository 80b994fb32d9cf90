"""Step 2: which images of the pool train the student, and as what.  `select` is the whole rule.

The teacher has given every image of the pool a softmax score for every class: its raw outputs, the
logits, as numbers from 0 to 1 that sum to 1.  An image is a
candidate for the P classes that it scores highest in.  Every class keeps its K best candidates.
The student is pre-trained on the pairs (image, class) that are kept, with the class as the label.

Why P is small    Only a few classes are relevant to an image.
Why P is above 1  With P=1 a class that is seldom the best one of any image would get few images.
                  The paper's P=10 gives a nearly balanced selection.
K is a trade-off  The more images a class keeps, the more varied they are, and the more are wrong.
Two classes       An image that two classes keep is selected twice, once with each label.
Ties              The paper (Yalniz et al. 2019) leaves them open.  Here the image that comes first
                  in the pool wins, and among the classes of one image the class that comes first.
Too few           A class with fewer than K candidates keeps those it has.

`select` needs all scores at once.  The rest of this file does the same for a pool of any size on
any device, chunk by chunk: `top_classes` finds the P best classes, `candidates` makes candidates of
them, `topk.TopK` keeps the K best, and a `Selector` runs the three.
"""

import torch

from topk import TopK, sort_key


def select(scores, p, k):
    """The selection as the paper describes it: plain, slow, and what the tests compare with.

    scores: a list of N >= 1 images, each a list of C numbers, its scores for the C classes
    -> a list of (image, label, score, rank), as in selection.csv: by label, then rank 1, 2, ..., k

    Three images, three classes.  With p=1 all three images stand for class 0, which keeps two:

    >>> scores = [[0.6, 0.3, 0.1],
    ...           [0.5, 0.4, 0.1],
    ...           [0.5, 0.3, 0.2]]
    >>> select(scores, p=1, k=2)
    [(0, 0, 0.6, 1), (1, 0, 0.5, 2)]

    With p=2 they stand for class 1 as well, and images 0 and 1 are each selected twice.  Image 2
    ties with image 1 in class 0 and with image 0 in class 1, and loses both, as it comes later:

    >>> select(scores, p=2, k=2)
    [(0, 0, 0.6, 1), (1, 0, 0.5, 2), (1, 1, 0.4, 1), (0, 1, 0.3, 2)]
    """
    classes = range(len(scores[0]))
    images_of = [[] for _ in classes]  # the images that are candidates for each class
    for image, row in enumerate(scores):
        best_classes = sorted(classes, key=lambda label: (-row[label], label))
        for label in best_classes[:p]:
            images_of[label].append(image)
    selection = []
    for label in classes:
        best_images = sorted(images_of[label], key=lambda image: (-scores[image][label], image))
        for rank, image in enumerate(best_images[:k], start=1):
            selection.append((image, label, scores[image][label], rank))
    return selection


def top_classes(logits, p):
    """The P best classes of each image.

    logits: (B,C) float -> score (B,P) float32, the softmax scores, falling; label (B,P) int64
    Raises ValueError unless 1 <= p <= C.
    """
    classes = logits.shape[1]
    if not 1 <= p <= classes:
        raise ValueError(f"p is {p}; it must be from 1 to the number of classes, {classes}")
    score = logits.float().softmax(1)
    # torch.topk promises no order among equals, and no two keys are equal.
    label = sort_key(score, torch.arange(classes, device=score.device)).topk(p, dim=1).indices
    return score.gather(1, label), label


STRATEGIES = ("ranked", "unbalanced", "random-in-class", "random", "tags")


def candidates(strategy, logits, top, position, seed=0, tags=None):
    """The candidates that a chunk of B images gives to TopK: the paper's rule, or one to compare.

    logits: (B,C); top: score and label (B,P), from `top_classes`; position: (B,) int64, in the pool
    tags: (B,) int64 on the CPU, the class that an image's folder is named after, -1 for none
    -> group, priority, position, label, score: (M,) each, for `TopK.add`, which keeps the
    candidates of the highest priority in each group

    ranked           the paper: each image is a candidate for its P best classes, by its scores
    unbalanced       each image for its best class, by its score, all classes in one group, so that
                     popular classes get more (in place of the Zipf-sized classes of the paper's
                     table 5, unbalanced-ranked)
    random-in-class  each image for its best class, in random order
    random           the same with all classes in one group
    tags             each image for its folder's class, in random order (paper, table 5: balanced
                     with tags)
    """
    score, label = top
    if strategy == "ranked":
        position = position.repeat_interleave(score.shape[1])  # (B*P,), image by image
        label, score = label.flatten(), score.flatten()
        return label, score, position, label, score
    shuffled = random_priority(position, seed)
    if strategy == "tags":
        tagged = (tags >= 0).nonzero()[:, 0]  # on the CPU: on a GPU one would have to wait for it
        label, tagged = (x.to(position.device, non_blocking=True) for x in (tags[tagged], tagged))
        position = position[tagged]
        score = logits.float().softmax(1)[tagged].gather(1, label[:, None])[:, 0]
        return label, shuffled[tagged], position, label, score
    label, score = label[:, 0], score[:, 0]
    group = label if strategy == "random-in-class" else torch.zeros_like(label)
    priority = score if strategy == "unbalanced" else shuffled
    return group, priority, position, label, score


def random_priority(position, seed):
    """A random number for every position, the same wherever and in whatever chunk it is drawn.

    position: int64, any shape; seed: an int -> float32 of that shape, uniform in [0,1)
    The bits are mixed as in splitmix64 (Steele et al. 2014), in int64, which wraps around.
    """

    def shift(x, bits):  # to the right, zeros from the left; int64's own >> repeats the sign
        return (x >> bits) & ((1 << (64 - bits)) - 1)

    x = (position + 1) * -7046029254386353131 + torch.tensor(seed) * -4658895280553007687
    x = (x ^ shift(x, 30)) * -4658895280553007687
    x = (x ^ shift(x, 27)) * -7723592293110705685
    return shift(x ^ shift(x, 31), 40).float() / 2**24  # 24 bits are what a float32 can hold


SCORE_BINS = 1000  # of the histogram of the images' best scores, from 0 to 1


class Selector:
    """`select` for a pool of any size: takes logits chunk by chunk, gives the selection.

    Several selectors, each for its own part of the pool, merge into the selection of the whole
    pool.  With its state_dict a walk over the pool can go on after a stop.

    position   the first entry of the pool that has not been seen yet
    scored     images that were let in
    histogram  int64 (SCORE_BINS,), of their best scores
    """

    def __init__(self, classes, strategy, p, k, seed=0, min_score=0.0, device="cpu", start=0):
        """strategy, seed: see `candidates`; min_score: no candidate has less; start: `position`.

        Raises ValueError for a k below 1.
        """
        self.strategy, self.p, self.seed = strategy, p, seed
        self.position, self.scored = start, 0
        self.histogram = torch.zeros(SCORE_BINS, dtype=torch.int64, device=device)
        # The paper's ranking is kept for every strategy: it says how many images to select.
        self.tables = {"ranked": TopK(classes, k, device, min_score)}
        self.one_group = strategy in ("unbalanced", "random")
        if strategy != "ranked":
            groups, places = (1, classes * k) if self.one_group else (classes, k)
            self.tables[strategy] = TopK(groups, places, device, min_score)

    def add(self, first, logits, usable=None, tags=None):
        """Rank a chunk: logits (B,C) of the entries of the pool from position `first` on.

        usable: (B,) bool on the CPU, which entries to let in, None for all; tags: (B,) int64 on the
        CPU, for the strategy tags
        -> the P best classes of all B entries: score, label (B,P), see `top_classes`

        Raises ValueError for a p out of range, and what `TopK.add` raises.
        """
        score, label = top = top_classes(logits, self.p)
        position = torch.arange(first, first + len(logits), device=logits.device)
        if usable is not None and not usable.all():
            here = usable.nonzero()[:, 0].to(logits.device, non_blocking=True)
            logits, top, position = logits[here], (score[here], label[here]), position[here]
            tags = None if tags is None else tags[usable]
        for strategy, table in self.tables.items():
            table.add(*candidates(strategy, logits, top, position, self.seed, tags))
        best = top[0][:, 0].nan_to_num()  # NaN is counted as 0 here; TopK raises for it
        bins = (best * SCORE_BINS).long().clamp(0, SCORE_BINS - 1)
        # bincount would make the CPU wait for a GPU.
        self.histogram.index_add_(0, bins, torch.ones_like(bins))
        self.scored += len(position)
        self.position = first + len(score)
        return score, label

    def rows(self):
        """The selection: position, label, score, rank, (M,) each, on the CPU; see `TopK.rows`."""
        table = self.tables[self.strategy]
        if self.one_group:  # as many images in all as the paper's rule selects
            table.cut(len(self.tables["ranked"].rows()[0]))
        return table.rows()

    def merge(self, other):
        """Add what another selector, of another part of the pool, has seen."""
        self.scored += other.scored
        self.histogram += other.histogram.to(self.histogram.device)
        for name, table in self.tables.items():
            table.merge(other.tables[name])

    def state_dict(self):
        """Tensors and numbers; not a copy: what is added later changes them."""
        state = {name: getattr(self, name) for name in ("position", "scored", "histogram")}
        return state | {"tables": {name: table.state_dict() for name, table in self.tables.items()}}

    def load_state_dict(self, state):
        """Go on from the state of a selector with the same settings."""
        self.position, self.scored = int(state["position"]), int(state["scored"])
        self.histogram = state["histogram"].to(self.histogram.device, copy=True)
        for name, table in state["tables"].items():
            self.tables[name].load_state_dict(table)
