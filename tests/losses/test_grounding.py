from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, distributed, multiprocessing

from odise_pl.losses.criterion import average_over_ranks
from odise_pl.losses.errors import NonFiniteError
from odise_pl.losses.grounding import GroundingCriterion, grounding_loss, pair_similarity
from odise_pl.structures import MaskPredictions

SCALE = torch.tensor(14.3)


def embeddings(batch: int = 4, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    masks = torch.randn(batch, 5, 6, generator=generator)
    return masks, torch.randn(batch, 3, 6, generator=generator)


def all_valid(words: Tensor) -> Tensor:
    return torch.ones(words.shape[:2], dtype=torch.bool)


def test_similarity_is_softmax_weighted_mean() -> None:
    masks = torch.tensor([[[1.0, 0.0], [0.0, 3.0]]])  # orthogonal
    words = torch.tensor([[[2.0, 0.0]]])  # parallel to the first mask
    found = pair_similarity(masks, words, torch.tensor(2.0))
    # similarities 2 and 0, weights e^2 : 1
    expected = 2 * math.exp(2) / (math.exp(2) + 1)
    torch.testing.assert_close(found, torch.tensor([[expected]]))


def test_loss_equals_loop() -> None:
    masks, words = embeddings()
    valid = all_valid(words)
    valid[1] = False
    pairs = [
        [float(pair_similarity(masks[i : i + 1], words[j : j + 1], SCALE)) for j in range(4)]
        for i in range(4)
    ]
    images, captions = [], []
    for i in (0, 2, 3):
        images.append(math.log(sum(math.exp(x) for x in pairs[i])) - pairs[i][i])
        captions.append(math.log(sum(math.exp(pairs[j][i]) for j in range(4))) - pairs[i][i])
    expected = (sum(images) / 3 + sum(captions) / 4) / 2
    assert float(grounding_loss(masks, words, valid, SCALE)) == pytest.approx(expected, rel=1e-5)


def test_images_without_words_have_no_loss() -> None:
    masks, words = embeddings(3)
    loss = grounding_loss(masks, words, torch.zeros(3, 3, dtype=torch.bool), SCALE)
    assert float(loss) == 0
    masks.requires_grad_()
    grounding_loss(masks, words, torch.zeros(3, 3, dtype=torch.bool), SCALE).backward()
    assert masks.grad is not None
    assert not masks.grad.any()


def test_loss_is_float32_under_autocast() -> None:
    masks, words = embeddings()
    exact = grounding_loss(masks.bfloat16().float(), words.bfloat16().float(), all_valid(words), SCALE)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = grounding_loss(masks.bfloat16(), words.bfloat16(), all_valid(words), SCALE)
    torch.testing.assert_close(rough, exact)


def outputs(count: int = 2) -> list[MaskPredictions]:
    nothing = torch.zeros(())
    return [MaskPredictions(nothing, nothing, embeddings(seed=i)[0], SCALE) for i in range(count)]


def test_criterion_weights_loss_of_every_output() -> None:
    _, words = embeddings(seed=9)
    losses = GroundingCriterion(weight=0.5)(outputs(), words, all_valid(words), range(4))
    expected = [
        0.5 * grounding_loss(output.mask_embed, words, all_valid(words), SCALE) for output in outputs()
    ]
    assert [float(loss) for loss in losses] == [float(loss) for loss in expected]


def test_non_finite_losses_name_images_and_output() -> None:
    _, words = embeddings()
    bad = outputs()
    bad[1].mask_embed[2, 0, 0] = float("nan")
    with pytest.raises(
        NonFiniteError, match=r"images \[7, 8, 9, 10\]: the grounding loss of decoder output 1 is"
    ):
        GroundingCriterion()(bad, words, all_valid(words), [7, 8, 9, 10])


def one_rank(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    masks, words = (x[2 * rank : 2 * rank + 2].requires_grad_() for x in embeddings())
    valid = all_valid(words)
    valid[0] = bool(rank)  # the first image of the first rank has no words
    scale = SCALE.clone().requires_grad_()
    loss = grounding_loss(masks, words, valid, scale)
    loss.backward()
    counts = [average_over_ranks(count[rank], torch.device("cpu")) for count in ((3, 8), (1, 0))]
    torch.save([loss.detach(), masks.grad, words.grad, scale.grad, *counts], f"{folder}/rank{rank}.pt")
    distributed.destroy_process_group()


def test_two_ranks_equal_global_batch(tmp_path: Path) -> None:
    # fork, because importing torch again is slow
    multiprocessing.start_processes(one_rank, (str(tmp_path),), nprocs=2, start_method="fork")
    parts = [torch.load(tmp_path / f"rank{rank}.pt") for rank in range(2)]
    masks, words = (x.requires_grad_() for x in embeddings())
    valid = all_valid(words)
    valid[0] = False
    scale = SCALE.clone().requires_grad_()
    loss = grounding_loss(masks, words, valid, scale)
    loss.backward()
    for part in parts:
        torch.testing.assert_close(part[0], loss.detach())
        assert [float(count) for count in part[4:]] == [5.5, 1.0]
    # data-parallel training averages over the ranks, so gradients are doubled here
    for i, whole in ((1, masks.grad), (2, words.grad)):
        torch.testing.assert_close(torch.cat([part[i] for part in parts]) / 2, whole)
    torch.testing.assert_close((parts[0][3] + parts[1][3]) / 2, scale.grad)
