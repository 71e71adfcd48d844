from __future__ import annotations

import itertools
import json
import shutil
from functools import partial
from pathlib import Path

import lightning
import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from lightning.pytorch.callbacks import LambdaCallback
from safetensors.torch import load_file
from torch.utils.data import DataLoader
from torch.utils.tensorboard import SummaryWriter

from odise_pl.models.backbones.clip import FrozenCLIP, build_clip, load_clip
from odise_pl.models.backbones.stable_diffusion import build_diffusion, encode_prompts, load_diffusion
from odise_pl.models.backbones.stable_diffusion import tokenize as tokenize_padded
from odise_pl.models.backbones.tokens import tokenize
from odise_pl.toyworld import corpus, curves, grade, pretrain
from odise_pl.toyworld.contrastive import PATCHES, ContrastiveModel, clip_batch
from odise_pl.toyworld.denoising import (
    HALF_SIZE,
    Latents,
    diffusion_batch,
    encode_views,
    enlarge,
    text_encoder_of,
    views,
)
from odise_pl.toyworld.pretraining import Draws, Schedule, pixels
from odise_pl.toyworld.regions import View, mosaic, regions_batch
from odise_pl.toyworld.sizes import CLIP, DIFFUSION, VOCABULARY
from odise_pl.toyworld.stuff import STUFF
from odise_pl.toyworld.things import THINGS

CONF = Path(__file__).parents[2] / "conf"


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpus, "CHUNK", 12)


def run(folder: Path, model: str, steps: int, *more: str) -> None:
    fixed = ["--chunks", "1", "--batch", "2", "--workers", "1", "--accelerator", "cpu", "--save-every", "1"]
    places = ["--out", str(folder / "weights"), "--work", str(folder / "work")]
    assert pretrain.main([model, "--steps", str(steps), *fixed, *places, *more]) == 0


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pretrained")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(corpus, "CHUNK", 12)
        for model in ("clip", "vae", "unet"):
            run(folder, model, 2)
    return folder / "weights"


def test_what_is_written_is_loaded_the_ordinary_way_and_small(trained: Path) -> None:
    clip = FrozenCLIP(load_clip(str(trained / "clip.safetensors"), CLIP))
    models = load_diffusion(str(trained / "diffusion"))
    assert clip.encode_text(["a red ball"]).shape == (1, CLIP.embed_dim)
    assert models.text_encoder.config.vocab_size == DIFFUSION.text_vocabulary
    # latents of unit variance are what the noise schedule is made for
    assert models.vae.config.scaling_factor != pytest.approx(0.18215)
    size = sum(path.stat().st_size for path in trained.rglob("*.safetensors"))
    assert size <= 28 * 10**6


def test_the_configuration_has_the_same_sizes() -> None:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("train", ["experiment=toy", "run=test"])
    assert instantiate(config.clip.architecture) == CLIP
    chosen = instantiate(config.backbone.architecture)
    assert {**vars(chosen), "unet_channels": tuple(chosen.unet_channels),
            "vae_channels": tuple(chosen.vae_channels)} == vars(DIFFUSION)  # fmt: skip


def test_a_stopped_run_goes_on_as_if_undisturbed(tmp_path: Path) -> None:
    run(tmp_path / "whole", "vae", 3)
    weights = tmp_path / "broken" / "weights" / "diffusion" / "vae" / "diffusion_pytorch_model.safetensors"

    class Stop(Exception):
        pass

    def stop(self: object, batch: object, batch_idx: int) -> None:
        if self.global_step == 2:  # type: ignore[attr-defined]
            raise Stop

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pretrain.Autoencoder, "on_train_batch_start", stop)
        with pytest.raises(Stop):
            run(tmp_path / "broken", "vae", 3)
    assert not weights.exists()
    run(tmp_path / "broken", "vae", 3)
    whole = tmp_path / "whole" / "weights" / "diffusion" / "vae" / "diffusion_pytorch_model.safetensors"
    assert weights.read_bytes() == whole.read_bytes()


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        (["--steps", "3"], "--steps 2 -> 3"),
        (["--seed", "5", "--batch", "3"], "--batch 2 -> 3, --seed 0 -> 5"),
    ],
)
def test_what_was_begun_with_other_settings_is_refused(
    trained: Path, changes: list[str], named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    where = ["--out", str(trained), "--work", str(trained.parent / "work"), "--accelerator", "cpu"]
    fixed = ["--steps", "2", "--chunks", "1", "--batch", "2"]
    before = (trained / "diffusion" / "vae" / "config.json").stat().st_mtime_ns
    assert pretrain.main(["vae", *where, *fixed, *changes]) == 1
    message = capsys.readouterr().err
    assert named in message
    assert "--work" in message
    assert (trained / "diffusion" / "vae" / "config.json").stat().st_mtime_ns == before


def test_what_stopped_before_its_first_checkpoint_has_not_begun(tmp_path: Path) -> None:
    folder = tmp_path / "work" / "vae"
    folder.mkdir(parents=True)
    (folder / "settings.json").write_text('{"steps": 99999}', encoding="utf-8")
    run(tmp_path, "vae", 1)
    assert json.loads((folder / "settings.json").read_text(encoding="utf-8"))["steps"] == 1


@pytest.mark.parametrize(
    "wrong",
    [["--precision", "foo"], ["--accelerator", "foo"], ["--seed", "-1"], ["--seed", str(2**32)],
     ["--seed", "1.5"], ["--first", "-3"]],
)  # fmt: skip
def test_wrong_options_are_named(wrong: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        pretrain.main(["vae", *wrong])
    assert f"argument {wrong[0]}" in capsys.readouterr().err


def test_damaged_files_are_named_with_the_way_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(tmp_path, "vae", 1)
    again = ["vae", "--steps", "1", "--chunks", "1", "--batch", "2", "--accelerator", "cpu"]
    again += ["--out", str(tmp_path / "weights"), "--work", str(tmp_path / "work")]
    for path, content in (
        (tmp_path / "work" / "vae" / "last.ckpt", b"PK half"),
        (tmp_path / "work" / "pictures" / "corpus_0000.json", b"[]"),
        (tmp_path / "work" / "pictures" / "corpus_0000.npy", b"half"),
    ):
        whole = path.read_bytes()
        path.write_bytes(content)
        assert pretrain.main(again) == 1
        message = capsys.readouterr().err
        assert path.stem in message
        assert "delete it to" in message
        path.write_bytes(whole)
    note = tmp_path / "work" / "vae" / "settings.json"
    for content in (b"half", b"3"):
        note.write_bytes(content)
        assert pretrain.main(again) == 1
        assert f"delete {note.parent} to begin anew" in capsys.readouterr().err
    (tmp_path / "file").touch()
    assert pretrain.main(["vae", "--out", str(tmp_path / "file"), "--work", str(tmp_path / "other")]) == 1
    assert "is a file" in capsys.readouterr().err
    assert pretrain.main(["vae", "--first", "5", "--steps", "5", "--work", str(tmp_path / "other")]) == 1
    assert "--first 5 must be less than --steps 5" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()


def test_batches_follow_from_their_number_and_captions_belong_to_pictures(tmp_path: Path) -> None:
    pictures = corpus.paint_corpus(tmp_path, 2, workers=1)
    assert len(pictures) == 24
    one, two = (clip_batch(pictures, 10, 4, np.random.default_rng([0, 5]), 5) for _ in range(2))
    assert torch.equal(one["images"], two["images"])
    assert torch.equal(one["tokens"], two["tokens"])
    assert torch.equal(one["patches"], two["patches"])
    assert one["images"].shape == (4, 3, 128, 128)
    assert one["patches"].shape == (4, PATCHES)
    names = {name for thing in THINGS for name in (thing.name, thing.many, *thing.synonyms)}
    names |= {name for stuff in STUFF for name in (stuff.name, *stuff.synonyms)}
    for detail in (detail for details in pictures.details for detail in details):
        left, top, right, bottom = detail.box
        assert 0 <= left < right <= 128
        assert 0 <= top < bottom <= 128
        assert all(any(name in caption.lower() for name in names) for caption in detail.captions)
    # a caption that names a side never goes with a mirrored latent
    values = torch.stack([torch.zeros(1, 4, 4, 4), torch.ones(1, 4, 4, 4)], dim=1)
    sided = Latents(values, values[..., ::2, ::2], [["a cat to the left of a cup"]])
    free = Latents(values, values[..., ::2, ::2], [["a cat and a cup"]])
    random = np.random.default_rng(0)
    kept = diffusion_batch(sided, 64, random, HALF_SIZE)
    named = (kept["tokens"] != tokenize_padded([""], DIFFUSION.text_pad, VOCABULARY)).any(1)
    assert 32 < named.sum() < 64  # some have no caption
    assert (kept["latents"][named] == 0).all()
    assert kept["latents"][~named].unique().tolist() == [0, 1]
    assert diffusion_batch(free, 64, random, HALF_SIZE)["latents"].unique().tolist() == [0, 1]
    sides = {
        n: diffusion_batch(free, 2, random, n)["latents"].shape[-1] for n in (0, HALF_SIZE - 1, HALF_SIZE)
    }
    assert sides == {0: 2, HALF_SIZE - 1: 2, HALF_SIZE: 4}  # the first are of half the size


def test_grades_say_how_good_models_are(trained: Path) -> None:
    clip = FrozenCLIP(load_clip(str(trained / "clip.safetensors"), CLIP))
    models = load_diffusion(str(trained / "diffusion"))
    assert 0 <= grade.grade_clip(clip, 20) <= 0.3  # two steps teach nothing
    assert all(0 <= share <= 0.3 for share in grade.grade_masks(clip, 6))
    assert 0 < grade.grade_vae(models.vae, 2) < 20

    class Perfect:
        """A VAE that restores everything."""

        def encode(self, images: torch.Tensor) -> object:
            return type("Out", (), {"latent_dist": type("D", (), {"mean": images})})

        def decode(self, latents: torch.Tensor) -> object:
            return type("Out", (), {"sample": latents + 0.002})

    assert grade.grade_vae(Perfect(), 2) == pytest.approx(60, abs=1)
    images = grade.sample(models, ["a red ball", "a cat"], steps=2)
    assert images.shape == (2, 3, 128, 128)
    assert grade.sheet([("a", image) for image in images], columns=3).size == (3 * 128, 128)


def test_what_pretraining_needs_is_asked_for_before_it_starts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    places = ["--out", str(tmp_path), "--work", str(tmp_path / "work")]
    assert pretrain.main(["unet", *places]) == 1
    assert "clip.safetensors is not there: pretrain clip first" in capsys.readouterr().err
    assert pretrain.main(["vae", "--first", "10", *places]) == 1
    assert "diffusion/vae is not there" in capsys.readouterr().err
    assert not (tmp_path / "work").exists()
    with pytest.raises(SystemExit):
        pretrain.main(["vae", "--chunks", "-1"])
    assert "--chunks" in capsys.readouterr().err


def test_the_text_encoder_of_the_diffusion_model_is_clips() -> None:
    clip = build_clip(CLIP).eval()
    encoder = text_encoder_of(clip)
    texts = ["a photo of a red pineapple on the grass", "a cat"]
    with torch.no_grad():
        end = (tokenize(texts, VOCABULARY, 77, DIFFUSION.text_pad) == VOCABULARY - 1).int().argmax(1)
        ours = encode_prompts(encoder, texts, DIFFUSION.text_pad)[range(2), end] @ clip.text_projection
        expected = clip.encode_text(tokenize(texts, VOCABULARY, CLIP.text_length))
    torch.testing.assert_close(ours, expected)
    assert not any(parameter.requires_grad for parameter in encoder.parameters())


@pytest.mark.parametrize("box", [(0, 0, 10, 40), (100, 60, 128, 90), (10, 20, 120, 128), (40, 40, 70, 60)])
def test_a_detail_is_enlarged_with_its_surroundings(box: tuple[int, int, int, int]) -> None:
    image = np.zeros((128, 128, 3), np.uint8)
    left, top, right, bottom = box
    image[top:bottom, left:right] = 255
    shown = enlarge(image, box)
    assert shown.shape == image.shape
    side = min(128, round(1.2 * max(right - left, bottom - top)))
    share = (right - left) * (bottom - top) / side**2
    assert shown.mean() / 255 == pytest.approx(share, abs=0.05)


def test_views_are_pictures_and_two_details_of_each_at_most(tmp_path: Path) -> None:
    pictures = corpus.paint_corpus(tmp_path, 1, workers=1)
    seen = list(views(pictures))
    assert 2 * len(pictures) < len(seen) <= 3 * len(pictures)
    written = [captions for _, captions in seen]
    assert all(captions in written for captions in pictures.captions)
    singles = [captions for captions in written if captions not in list(pictures.captions)]
    assert all(any(captions == detail.captions for details in pictures.details for detail in details)
               for captions in singles)  # fmt: skip
    assert len(singles) == len({str(captions) for captions in singles})
    assert [captions for _, captions in views(pictures)] == written


def test_latents_of_views_are_kept_small_for_all_and_whole_for_some(tmp_path: Path) -> None:
    pictures = corpus.paint_corpus(tmp_path, 8, workers=1)
    models = build_diffusion(DIFFUSION)
    models.vae.register_to_config(scaling_factor=2.0)
    latents = encode_views(models.vae, pictures)
    every = list(views(pictures))
    assert list(latents.captions) == [captions for _, captions in every]
    assert latents.half.shape == (len(every), 2, 16, 8, 8)
    assert len(pictures) / 2 < len(latents.whole) < len(every)
    image = 2 * pixels([every[3][0]]) - 1
    with torch.no_grad():
        plain, mirrored = (2 * models.vae.encode(x).latent_dist.mean[0] for x in (image, image.flip(-1)))
    for found, expected in zip(latents.whole[3], (plain, mirrored), strict=True):
        assert (found - expected).std() < 0.001 * expected.std()


def test_it_goes_on_from_weights_of_a_number_of_steps(trained: Path, tmp_path: Path) -> None:
    shutil.copytree(trained, tmp_path / "weights")
    run(tmp_path, "clip", 4, "--first", "2")
    before, after = (load_file(folder / "clip.safetensors") for folder in (trained, tmp_path / "weights"))
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert {"visual.proj", "text_projection"} <= changed
    checkpoint = torch.load(tmp_path / "work" / "clip" / "last.ckpt", weights_only=True)
    assert checkpoint["global_step"] == 2
    for model, done in (("vae", 2), ("unet", HALF_SIZE)):
        weights = tmp_path / "weights" / "diffusion" / model / "diffusion_pytorch_model.safetensors"
        before = load_file(weights)
        run(tmp_path, model, done + 1, "--first", str(done), "--batch", "1")
        now = load_file(weights)
        # one step with the learning rate at its lowest: what it started from, or near to it
        checkpoint = torch.load(tmp_path / "work" / model / "last.ckpt", weights_only=True)
        assert checkpoint["global_step"] == 1
        for name, value in before.items():
            torch.testing.assert_close(now[name], value, atol=2e-3, rtol=0.1)


def test_clip_is_shown_things_enlarged_then_details_in_their_size_then_regions(tmp_path: Path) -> None:
    pictures = corpus.paint_corpus(tmp_path, 1, workers=1)
    random = np.random.default_rng(0)
    easy, all_kinds, regions = (clip_batch(pictures, 12, 150, random, number) for number in (3, 4, 8))
    assert all(len(chosen.unique()) == PATCHES for chosen in easy["patches"]), "patches of a whole image"
    assert any(len(chosen.unique()) < PATCHES for chosen in all_kinds["patches"]), "a few, of a detail"
    seen = int(regions["visible"].any(2).sum())
    assert len(regions["images"]) == 37
    assert seen > 100
    assert 0 < regions["captioned"].sum() < 37, "the others are put together"
    assert len(regions["tokens"]) == regions["captioned"].sum() + seen


def test_regions_show_patches_of_what_their_captions_name(monkeypatch: pytest.MonkeyPatch) -> None:
    image = np.zeros((1, 128, 128, 3), np.uint8)
    image[0, 64:96, 32:64] = 255
    box = (32, 64, 64, 96)
    one = corpus.Corpus([image], [["all"]], [[corpus.Detail(box, ["part"], True)]])
    monkeypatch.setattr(corpus, "CHUNK", 1)
    monkeypatch.setattr("odise_pl.toyworld.regions._MOSAICS", 0.0)
    shares = set()
    for number in range(40):
        batch = regions_batch(one, 4, np.random.default_rng(number))
        assert len(batch["tokens"]) == 2
        ((patches,),) = batch["visible"]
        tiles = batch["images"][0].mean(0).unfold(0, 8, 8).unfold(1, 8, 8).mean((2, 3)).flatten()
        assert patches.any()
        assert (tiles[patches] > 0).all(), "no patch beside the part"
        shares.add(round(float(patches.float().mean()), 2))
        whole = torch.equal(batch["tokens"][0], tokenize(["all"], VOCABULARY, CLIP.text_length)[0])
        assert whole == (tiles.mean().item() == pytest.approx(1 / 16))
    assert min(shares) < 0.05 < 0.2 < max(shares), "in the picture and enlarged"


def test_in_a_mosaic_views_are_parts_and_their_parts_move_along() -> None:
    views = [
        View(
            torch.full((1, 3, 128, 128), number / 4), f"view {number}", [((0, 32, 3, 128), f"part {number}")]
        )
        for number in range(3)
    ]
    whole = mosaic([*views, View(torch.ones(1, 3, 128, 128), None, [])])
    assert whole.caption is None
    assert whole.image.shape == (1, 3, 128, 128)
    assert len(whole.parts) == 6
    for (left, top, right, bottom), caption in whole.parts:
        shown = whole.image[0, 0, top:bottom, left:right]
        assert (shown == int(caption[-1]) / 4).all()
        assert shown.shape == ((64, 64) if caption.startswith("view") else (48, 2))


def test_a_picture_without_details_has_no_regions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpus, "CHUNK", 1)
    monkeypatch.setattr("odise_pl.toyworld.regions._MOSAICS", 0.0)
    plain = corpus.Corpus([np.zeros((1, 128, 128, 3), np.uint8)], [["sky"]], [[]])
    batch = regions_batch(plain, 8, np.random.default_rng(0))
    assert not batch["visible"].any()
    assert len(batch["tokens"]) == len(batch["images"]) == 2
    loss = ContrastiveModel(build_clip(CLIP), Schedule(4, 1e-3)).training_step(batch, 0)
    assert loss.isfinite()


def test_curves_are_drawn_from_the_logs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = SummaryWriter(str(tmp_path / "vae"))
    for step, value in ((0, 10.0), (20, 20.0), (20, 21.0), (40, 30.0)):
        log.add_scalar("psnr", value, step)
    log.close()
    steps, values = curves.read_curve(tmp_path / "vae", "psnr")
    assert steps.tolist() == [0, 20, 40]
    assert values.tolist() == [10, 21, 30]
    assert curves.main([str(tmp_path), "--out", str(tmp_path / "curves.png")]) == 0
    assert (tmp_path / "curves.png").stat().st_size > 1000
    assert curves.main([str(tmp_path / "nothing"), "--out", str(tmp_path / "none.png")]) == 1
    assert "run pretrain first" in capsys.readouterr().err
    SummaryWriter(str(tmp_path / "other" / "unet")).add_scalar("something", 1, 1)
    assert curves.main([str(tmp_path / "other"), "--out", str(tmp_path / "none.png")]) == 1
    assert "without error" in capsys.readouterr().err
    assert not (tmp_path / "none.png").exists()


def test_the_learning_rate_falls_to_zero_once_in_each_cycle() -> None:
    factors = [Schedule(40, 1.0, cycles=2, warmup=1).factor(step) for step in range(41)]
    assert factors[0] == factors[20] == 1
    assert factors[19] < 0.01
    assert factors[40] == 0
    assert factors[:20] == sorted(factors[:20], reverse=True)
    assert factors[20:40] == pytest.approx(factors[:20])


def test_clips_text_encoder_rests_in_the_second_third(tmp_path: Path) -> None:
    module = ContrastiveModel(build_clip(CLIP), Schedule(6, 1e-3, cycles=3, warmup=1))
    states = []
    watch = LambdaCallback(
        on_train_batch_end=lambda *_: states.append(
            {n: p.clone() for n, p in module.model.named_parameters()}
        )
    )
    pictures = corpus.paint_corpus(tmp_path, 1, workers=1)
    draws = Draws(partial(clip_batch, pictures, 6, 3), seed=0)
    trainer = lightning.Trainer(max_steps=6, accelerator="cpu", logger=False, callbacks=[watch],
                                enable_checkpointing=False, enable_progress_bar=False)  # fmt: skip
    trainer.fit(module, DataLoader(draws, batch_size=None))
    changed = [
        {name for name in now if not torch.equal(now[name], before[name])}
        for before, now in itertools.pairwise(states)
    ]
    text = {name for name in states[0] if not name.startswith(("visual.", "logit_scale"))}
    assert text <= changed[0]
    assert not text & (changed[1] | changed[2])
    assert all("visual.proj" in names for names in changed)
    assert text <= changed[4]
