"""Weights in and out: strict loading, permutation, and a final model that plain open_clip opens."""

import json
from collections.abc import Callable
from pathlib import Path

import open_clip
import pytest
import torch
from PIL import Image
from safetensors import SafetensorError

from trainer.config import ModelConfig
from trainer.configs import load_recipe
from trainer.errors import InputError
from trainer.model import encoding, towers

TINY = load_recipe("smoke").model
State = dict[str, torch.Tensor]


def rename(state: State) -> State:
    return {("projection" if name == "proj" else name): value for name, value in state.items()}


def drop(state: State) -> State:
    return {name: value for name, value in state.items() if name != "ln_post.bias"}


def transpose(state: State) -> State:
    return state | {"transformer.resblocks.0.mlp.c_fc.weight": state["transformer.resblocks.0.mlp.c_fc.weight"].T}


def spoil(state: State) -> State:
    return state | {"proj": torch.full_like(state["proj"], torch.nan)}


def prefix(state: State) -> State:
    return {f"visual.{name}": value for name, value in state.items()}


def test_a_tower_loads_into_another_model() -> None:
    """After loading, the vision tower is the other's, the rest is untouched."""
    source, target = towers.build_model(TINY, 1), towers.build_model(TINY, 2)
    text = target.text_projection.detach().clone()
    towers.load_vision(target, towers.vision_state(source))
    assert all(torch.equal(a, b) for a, b in zip(source.visual.parameters(), target.visual.parameters(), strict=True))
    assert torch.equal(target.text_projection, text)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (rename, r"1 keys missing \(first: proj\), 1 unexpected \(first: projection\)"),
        (drop, r"1 keys missing \(first: ln_post.bias\), 0 unexpected \(first: none\)"),
        (transpose, r"resblocks.0.mlp.c_fc.weight has shape \(32, 128\), not \(128, 32\)"),
        (spoil, "proj contains NaN or Inf"),
        (prefix, r"first: visual.class_embedding"),
    ],
)
def test_a_tower_that_does_not_fit_is_refused(change: Callable[[State], State], message: str) -> None:
    """Any difference ends the hand-off in one line that names it, and leaves the model as it was."""
    model = towers.build_model(TINY, 0)
    before = towers.vision_state(model)
    with pytest.raises(InputError, match=message) as caught:
        towers.load_vision(model, change(towers.vision_state(towers.build_model(TINY, 1))), "towers/x/final")
    assert str(caught.value).startswith("towers/x/final")
    assert "\n" not in str(caught.value)
    assert all(torch.equal(value, before[name]) for name, value in towers.vision_state(model).items())


def test_permuted_weights_keep_every_tensors_numbers() -> None:
    """Each tensor holds the same numbers in other places; the seed decides which; the original is untouched."""
    state = towers.vision_state(towers.build_model(TINY, 0))
    copy = {name: value.clone() for name, value in state.items()}
    permuted, again, other = (towers.permute_within(state, seed) for seed in (3, 3, 4))
    assert permuted.keys() == state.keys()
    for name, value in state.items():
        assert torch.equal(value, copy[name])
        assert permuted[name].shape == value.shape
        assert torch.equal(permuted[name].flatten().sort().values, value.flatten().sort().values)
        assert torch.equal(permuted[name], again[name])
    assert not torch.equal(permuted["proj"], state["proj"])
    assert not torch.equal(permuted["proj"], other["proj"])


@pytest.mark.parametrize("config", [TINY, ModelConfig(open_clip_name="ViT-S-32-alt")])
def test_open_clip_opens_the_final_model(config: ModelConfig, tmp_path: Path) -> None:
    """local-dir: gives equal weights and features, and preprocessing at the model's own size with CLIP's mean and deviation."""
    model = towers.build_model(config, 0).eval()
    towers.save_open_clip(tmp_path, model, config)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["open_clip_config.json", "open_clip_model.safetensors"]
    opened, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{tmp_path}")
    opened.eval()
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), opened.state_dict().values(), strict=True))
    side = towers.resolve(config)["image_size"]
    picture = preprocess(Image.new("RGB", (side + 20, side + 9), (255, 0, 0)))[None]
    assert picture.shape == (1, 3, side, side)
    assert picture[0, 0, 0, 0].item() == pytest.approx((1 - 0.48145466) / 0.26862954, rel=1e-5)
    tokens = open_clip.get_tokenizer(f"local-dir:{tmp_path}")(["a red square", "a longer caption of a red square on nothing"])
    lengths = (tokens != 0).sum(1)
    with torch.no_grad():
        torch.testing.assert_close(encoding.encode_image(model, picture), opened.encode_image(picture, normalize=True))
        torch.testing.assert_close(encoding.encode_text(model, tokens, lengths), opened.encode_text(tokens, normalize=True))


def test_the_saved_configuration_names_every_size(tmp_path: Path) -> None:
    """open_clip_config.json holds the sizes of the recipe, so that nothing is left to a default."""
    towers.save_open_clip(tmp_path, towers.build_model(TINY, 0), TINY)
    content = json.loads((tmp_path / "open_clip_config.json").read_text())
    assert content["model_cfg"]["vision_cfg"] == {"image_size": 32, "patch_size": 8, "layers": 2, "width": 32, "head_width": 16}
    assert content["preprocess_cfg"]["size"] == [32, 32]


def test_a_full_disk_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Safetensors says it in an error of its own, which would end a run with a traceback."""

    def refuse(*_: object, **__: object) -> None:
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(towers, "save_file", refuse)
    with pytest.raises(OSError, match=r"No space left on device: '.*/weights'"):
        towers.write_tensors(tmp_path / "weights", {"weight": torch.zeros(4)})
