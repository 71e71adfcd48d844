"""The contrastive losses against plain loops."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, distributed, multiprocessing

from odise_pl.losses.contrast import ContrastCriterion, contrastive_loss
from odise_pl.losses.errors import NonFiniteError
from odise_pl.models.grouping import PairEmbeddings

SCALE = torch.tensor(4.0)
IMAGES, TEXTS = (
    torch.randn(*size, generator=torch.Generator().manual_seed(0)) for size in ((4, 8), (4, 3, 8))
)
ALL = torch.ones(4, dtype=torch.bool)
SOME = torch.tensor([False, True, True, True])


def cosine(one: Tensor, other: Tensor) -> float:
    return float(one @ other / (one.norm() * other.norm()))


def slow_loss(images: Tensor, texts: Tensor, valid: list[bool]) -> float:
    """Cross-entropies with equal targets for all texts of an image, from logits one by one."""
    of_each, total = texts.shape[1], 0.0
    with_text = [i for i, is_valid in enumerate(valid) if is_valid]
    for image in with_text:
        power = {
            (i, t): math.exp(4 * cosine(images[image], texts[i, t]))
            for i in with_text
            for t in range(of_each)
        }
        for text in range(of_each):
            others = sum(math.exp(4 * cosine(one, texts[image, text])) for one in images)
            own = power[image, text]
            total -= (math.log(own / sum(power.values())) + math.log(own / others)) / 2 / of_each
    return total / max(1, len(with_text))


@pytest.mark.parametrize("valid", [[True] * 4, [True, False, True, True], [False] * 4])
@pytest.mark.parametrize("texts", [TEXTS, TEXTS[:, :1]])
def test_loss_equals_slow_loop(texts: Tensor, valid: list[bool]) -> None:
    images = IMAGES.clone().requires_grad_()
    loss = contrastive_loss(images, texts, torch.tensor(valid), SCALE)
    assert float(loss.detach()) == pytest.approx(slow_loss(IMAGES, texts, valid), abs=1e-5)
    loss.backward()
    assert images.grad is not None
    assert images.grad.isfinite().all()


def test_one_text_per_image_is_infonce() -> None:
    logits = SCALE * torch.nn.functional.normalize(IMAGES) @ torch.nn.functional.normalize(TEXTS[:, 0]).T
    own = torch.arange(4)
    entropies = [torch.nn.functional.cross_entropy(x, own) for x in (logits, logits.T)]
    torch.testing.assert_close(contrastive_loss(IMAGES, TEXTS[:, :1], ALL, SCALE), sum(entropies) / 2)


def one_rank(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    images, texts = (x[2 * rank : 2 * rank + 2].clone().requires_grad_() for x in (IMAGES, TEXTS))
    loss = contrastive_loss(images, texts, SOME[2 * rank : 2 * rank + 2], SCALE)
    loss.backward()
    torch.save([loss.detach(), images.grad, texts.grad], f"{folder}/rank{rank}.pt")
    distributed.destroy_process_group()


def test_two_ranks_equal_global_batch(tmp_path: Path) -> None:
    # fork, because importing torch again is slow
    multiprocessing.start_processes(one_rank, (str(tmp_path),), nprocs=2, start_method="fork")
    parts = [torch.load(tmp_path / f"rank{rank}.pt") for rank in range(2)]
    images, texts = (x.clone().requires_grad_() for x in (IMAGES, TEXTS))
    loss = contrastive_loss(images, texts, SOME, SCALE)
    loss.backward()
    for part in parts:
        torch.testing.assert_close(part[0], loss.detach())
    # data-parallel training averages over the ranks, so gradients are doubled here
    for i, whole in ((1, images.grad), (2, texts.grad)):
        torch.testing.assert_close(torch.cat([part[i] for part in parts]) / 2, whole)


def test_criterion_weighs_words_and_names_images_of_infinite_losses() -> None:
    pairs = PairEmbeddings(IMAGES, TEXTS[:, :1], TEXTS, SCALE)
    whole, half = (ContrastCriterion(weight)(pairs, ALL, [1, 2, 3, 4]) for weight in (1, 0.5))
    assert half.named() == {"captions": whole.captions, "words": whole.words / 2}
    torch.testing.assert_close(half.total, whole.captions + whole.words / 2)
    broken = PairEmbeddings(IMAGES * float("nan"), TEXTS[:, :1], TEXTS, SCALE)
    with pytest.raises(NonFiniteError, match=r"\[1, 2, 3, 4\]") as error:
        ContrastCriterion()(broken, ALL, [1, 2, 3, 4])
    assert not error.value.losses[0].total.isfinite()
