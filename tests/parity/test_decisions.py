from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from odise_pl.models.heads.mask_decoder import DecoderOutput, MaskDecoder
from odise_pl.models.heads.pixel_decoder import PixelFeatures
from tests.parity import decisions
from tests.parity.decisions import DecidingMaskDecoder, Decision, settle, threshold_check

SIZES = (32, 32, 32, 8, 4, 4, 64)


@pytest.fixture(autouse=True)
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    """In so small a decoder hardly a decision is as close as in the real one."""
    monkeypatch.setattr(decisions, "STAGE", 0.02)


def features() -> PixelFeatures:
    generator = torch.Generator().manual_seed(0)
    levels = [torch.randn(2, 32, s, s + 1, generator=generator) for s in (2, 4, 8)]
    return PixelFeatures(torch.randn(2, 32, 16, 18, generator=generator), levels)


def decoder() -> DecidingMaskDecoder:
    torch.manual_seed(0)
    return DecidingMaskDecoder(*SIZES, object_head=True).eval()


@torch.no_grad()
def run(model: MaskDecoder) -> list[DecoderOutput]:
    return model(features())


def same(one: Sequence[DecoderOutput], other: Sequence[DecoderOutput]) -> bool:
    return all(torch.equal(a.mask_logits, b.mask_logits) and torch.equal(a.mask_embed, b.mask_embed)
               for a, b in zip(one, other, strict=True))  # fmt: skip


def turned(site: str) -> tuple[Decision, list[DecoderOutput]]:
    """What comes out when the closest decision of a kind is the other way round: a record to find again."""
    model = decoder()
    run(model)
    decision = min(d for d in model.open if d.site == site)
    model.flipped = frozenset({decision.place})
    return decision, run(model)


def distance_to(record: Sequence[DecoderOutput], tolerance: float = 1e-4):
    def distance(outputs: Sequence[DecoderOutput]) -> Tensor:
        rows = []
        for own, held in zip(outputs, record, strict=True):
            for x, y in ((own.mask_logits, held.mask_logits), (own.mask_embed, held.mask_embed)):
                rows.append((x - y).abs().flatten(2).amax(2) / (tolerance * y.abs().max()))
        return torch.stack(rows).amax(0)

    return distance


def test_alone_it_decides_as_the_network_does() -> None:
    model = decoder()
    plain = MaskDecoder(*SIZES, object_head=True).eval()
    plain.load_state_dict(model.state_dict())
    assert same(run(model), run(plain))
    assert model.taken == 0
    # 5 predictions are pooled on 16 x 18 cells, 4 are shown to levels of 2 x 3, 4 x 5, 8 x 9 and 2 x 3 cells
    assert model.cells == 2 * 8 * (5 * 16 * 18 + 6 + 20 + 72 + 6)
    assert {d.site for d in model.open} == {"hidden", "pooled"}
    assert all(0 <= d.margin < 0.02 for d in model.open)


@pytest.mark.parametrize("site", ["hidden", "pooled"])
def test_a_turned_decision_matters_far_more_than_its_margin(site: str) -> None:
    _, record = turned(site)
    found = run(decoder())
    assert float(distance_to(record)(found).max()) > 10
    same_masks = torch.equal(found[-1].mask_logits, record[-1].mask_logits)
    assert same_masks == (site == "pooled")  # pooled features do not go back into the queries


@pytest.mark.parametrize("site", ["hidden", "pooled"])
@torch.no_grad()
def test_settling_finds_the_decision_that_the_record_took(site: str) -> None:
    decision, record = turned(site)
    model = decoder()
    outputs = settle(model, features(), distance_to(record))
    assert model.flipped == {decision.place}
    assert same(outputs, record)
    assert threshold_check(model).note == f"1 undecided of {model.cells}"
    model.reset()
    assert not same(run(model), record)


@torch.no_grad()
def test_settling_takes_what_agrees_as_it_is() -> None:
    record = run(decoder())
    model = decoder()
    assert same(settle(model, features(), distance_to(record)), record)
    assert model.flipped == frozenset()


@torch.no_grad()
def test_settling_explains_nothing_that_no_close_decision_explains(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decisions, "STAGE", 1e-4)
    other = decoder()
    other.mask_mlp.layers[0].weight.data *= 1.1  # type: ignore[operator, union-attr]
    record = run(other)
    model = decoder()
    outputs = settle(model, features(), distance_to(record))
    assert float(distance_to(record)(outputs).max()) > 1
    assert len(model.flipped) <= len(model.open)


@torch.no_grad()
def test_settling_gives_up_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    record = [DecoderOutput(o.mask_logits * 2, o.mask_embed, o.pooled, o.logit_scale) for o in run(decoder())]
    passes = 0
    forward = DecidingMaskDecoder.forward

    def counted(self: DecidingMaskDecoder, x: PixelFeatures) -> list[DecoderOutput]:
        nonlocal passes
        passes += 1
        return forward(self, x)

    monkeypatch.setattr(DecidingMaskDecoder, "forward", counted)
    settle(decoder(), features(), distance_to(record))
    assert passes <= decisions.TRIALS + 2


@pytest.mark.parametrize("site", ["hidden", "pooled"])
@torch.no_grad()
def test_recorded_masks_decide_where_it_is_close(site: str) -> None:
    decision, _ = turned(site)
    model = decoder()
    masks = [o.mask_logits.clone() for o in run(model)]
    recorded = masks[decision.output]
    if site == "pooled":
        recorded[decision.index] *= -1
    else:  # every cell that the resized one is made of, so that its sign is certain
        image, query = decision.index[:2]
        recorded[image, query] *= -1
    model.recorded = {decision.output: recorded}
    run(model)
    assert model.taken > 0
    assert not any(d.output == decision.output for d in model.open)


@torch.no_grad()
def test_recorded_masks_do_not_decide_where_it_is_not_close(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decisions, "STAGE", 1e-9)
    model = decoder()
    plain = run(model)
    model.recorded = {i: -o.mask_logits for i, o in enumerate(plain)}
    assert same(run(model), plain)
    assert model.taken == 0
