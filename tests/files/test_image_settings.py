"""The settings in preprocessor_config.json and vision_config, and refused values."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

import gemlet
from gemlet.config import parse_config
from gemlet.config.image_settings import ImageSettings, PanAndScan, read_image_settings
from gemlet.config.vision_config import SiglipConfig
from gemlet.errors import ConfigError
from gemlet.sources.hf_folder import open_folder
from support.vision import FOLDERS, VARIANTS

HALVES = (0.5, 0.5, 0.5)
DEFAULTS = ImageSettings(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))


def settings(folder: Path, **values: Any) -> ImageSettings:
    (folder / "preprocessor_config.json").write_text(json.dumps(values))
    return read_image_settings(str(folder), DEFAULTS)


def test_missing_settings_have_the_defaults(tmp_path: Path) -> None:
    assert read_image_settings(str(tmp_path), DEFAULTS) == DEFAULTS
    assert settings(tmp_path) == DEFAULTS
    published = VARIANTS["gemma3"].preprocessor
    found = settings(tmp_path, **published)
    assert (found.resample, found.mean, found.does_pan_and_scan) == ("bilinear", (0.5, 0.5, 0.5), False)
    assert found.pan_and_scan == PanAndScan(256, 4, 1.2)


def test_the_settings_of_a_file_are_read(tmp_path: Path) -> None:
    found = settings(
        tmp_path,
        resample=3,
        image_mean=[0, 0.1, 0.2],
        do_pan_and_scan=True,
        pan_and_scan_max_num_crops=2,
    )
    assert (found.resample, found.mean, found.does_pan_and_scan) == ("bicubic", (0.0, 0.1, 0.2), True)
    assert found.pan_and_scan == PanAndScan(256, 2, 1.2)
    assert settings(tmp_path, do_normalize=False).mean is None


def test_null_turns_off_and_does_not_mean_the_default(tmp_path: Path) -> None:
    """transformers 5.24.0 does the same."""
    assert settings(tmp_path, do_normalize=None).mean is None
    assert settings(tmp_path, do_normalize=None, image_mean=None).mean is None
    assert settings(tmp_path, do_convert_rgb=None, do_center_crop=None, do_pan_and_scan=None) == DEFAULTS


def test_the_newer_file_counts_first(tmp_path: Path) -> None:
    inner = {"image_processor": {"max_soft_tokens": 560, "resample": 3}}
    (tmp_path / "processor_config.json").write_text(json.dumps(inner))
    assert settings(tmp_path, resample=2).max_soft_tokens == 560


@pytest.mark.parametrize(
    "wrong",
    [
        {"resample": 1},
        {"resample": "bilinear"},
        {"resample": True},
        {"do_resize": False},
        {"do_rescale": False},
        {"image_mean": [0.5]},
        {"image_mean": [0.5, 0.5, "x"]},
        {"image_std": [0, 0.5, 0.5]},
        {"rescale_factor": -1},
        {"do_pan_and_scan": "yes"},
        {"pan_and_scan_max_num_crops": 0},
        {"pan_and_scan_max_num_crops": 10**9},
        {"pan_and_scan_min_ratio_to_activate": 0.5},
        {"max_soft_tokens": 0},
        {"max_soft_tokens": 100},
        {"do_rescale": None},
        {"do_resize": None},
        {"resample": None},
        {"rescale_factor": None},
        {"image_mean": None},
        {"image_std": None},
        {"do_center_crop": True},
        {"do_pad": True},
        {"size": 224},
        {"size": {"shortest_edge": 224}},
        {"size": {"height": 224, "width": True}},
        {"patch_size": 0},
    ],
)
def test_wrong_values_name_their_key(wrong: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        settings(tmp_path, **wrong)


def seen(folder: Path) -> ImageSettings:
    with open_folder(str(folder), name="model", cache=False) as files:
        assert files.config.vision is not None
        return files.config.vision.settings


def test_absent_keys_of_gemma3n_mean_the_defaults_of_the_references_class(tmp_path: Path) -> None:
    """SiglipImageProcessor: with bicubic filter, normalised, 224 x 224. Published files say otherwise."""
    names = ("resample", "do_normalize", "image_mean", "image_std", "size")
    shutil.copytree(FOLDERS / "gemma3n", tmp_path / "model")
    path = tmp_path / "model" / "preprocessor_config.json"
    said = json.loads(path.read_text())
    assert (seen(path.parent).resample, seen(path.parent).mean) == ("bilinear", None)
    path.write_text(json.dumps({key: one for key, one in said.items() if key not in names}))
    found = seen(path.parent)
    assert (found.resample, found.mean, found.std, found.size) == ("bicubic", HALVES, HALVES, (224, 224))
    path.unlink()
    assert (seen(path.parent).resample, seen(path.parent).mean) == ("bilinear", None)


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("gemma3", {"size": {"height": 112, "width": 56}}),
        ("gemma4-small", {"patch_size": 16}),
        ("gemma4-small", {"pooling_kernel_size": 2}),
        ("gemma4-unified", {"pooling_kernel_size": 2}),
    ],
)
def test_the_preprocessor_has_to_fit_the_tower(name: str, wrong: dict[str, Any], tmp_path: Path) -> None:
    shutil.copytree(FOLDERS / name, tmp_path / "model")
    nested = (tmp_path / "model" / "processor_config.json").exists()
    path = tmp_path / "model" / f"{'' if nested else 'pre'}processor_config.json"
    said = json.loads(path.read_text())
    said.get("image_processor", said).update(wrong)
    path.write_text(json.dumps(said))
    with pytest.raises(ConfigError, match=rf"the preprocessor's {next(iter(wrong))} is .* as in the tower"):
        gemlet.inspect(tmp_path / "model")


def test_missing_keys_of_a_tower_have_defaults() -> None:
    config = VARIANTS["gemma3"].config | {"vision_config": {"model_type": "siglip_vision_model"}}
    found = parse_config(config, where="config.json").vision
    assert isinstance(found, SiglipConfig)
    assert (found.hidden_size, found.num_layers, found.image_size, found.patch_size) == (768, 12, 224, 16)


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [
        ("gemma3", "hidden_size", 0),
        ("gemma3", "hidden_size", "36"),
        ("gemma3", "num_hidden_layers", 10**12),
        ("gemma3", "hidden_act", "relu"),
        ("gemma3", "num_channels", 1),
        ("gemma3", "model_type", "clip_vision_model"),
        ("gemma4-small", "head_dim", -1),
        ("gemma4-small", "use_clipped_linears", "yes"),
        ("gemma4-small", "hidden_activation", "relu"),
        ("gemma4-small", "rope_parameters", {"rope_theta": 0}),
        ("gemma4-small", "rope_parameters", {"rope_type": "yarn"}),
        ("gemma4-unified", "mm_posemb_size", 0),
    ],
)
def test_wrong_towers_name_their_key(name: str, key: str, value: Any) -> None:
    config = VARIANTS[name].config
    wrong = config | {"vision_config": config["vision_config"] | {key: value}}
    expected = next(iter(value)) if isinstance(value, dict) else key
    with pytest.raises(ConfigError, match=f"vision_config.*{expected}"):
        parse_config(wrong, where="config.json")
