"""Conversion with a calibration text: rounded matrices, a smaller error, and refused arguments."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

import gemlet
from gemlet.cli import main
from gemlet.errors import InvalidRequestError, ModelFileError
from gemlet.packing.feedback import feedback_of, round_with_feedback
from support.inside import core_of, testing
from support.paths import DATA

TEXT = DATA / "heldout.txt"
_UNSEEN = 3000  # the calibration does not use these last characters


def correlated(random: np.random.Generator, rows: int, columns: int) -> NDArray[np.float32]:
    """Inputs with correlated channels, some of them large."""
    mixed = random.standard_normal((rows, columns // 4)) @ random.standard_normal((columns // 4, columns))
    mixed += 0.3 * random.standard_normal((rows, columns))
    return (mixed * 10 ** random.uniform(-1, 0.5, columns)).astype(np.float32)


@pytest.mark.parametrize(("format", "gain"), [("q4", 3), ("q5", 3), ("q8", 2)])
def test_feedback_leaves_less_error_in_the_outputs(format: str, gain: float) -> None:
    random = np.random.default_rng(1)
    w = random.standard_normal((48, 128)).astype(np.float32)
    x = correlated(random, 2000, 128)
    gram = x.T @ x
    rounded = round_with_feedback(w, feedback_of(gram), gram, format)
    values = testing.kernel_blocks(dtype=rounded.dtype, data=rounded.blocks, format="f32")
    plain = testing.kernel_roundtrip(format=format, w=w)
    errors = [np.square(x @ (v - w).T).sum() for v in (values, plain)]
    assert gain * errors[0] < errors[1]
    assert rounded.error == pytest.approx(errors[0] / np.square(x @ w.T).sum(), rel=1e-2)


def test_without_correlation_it_is_plain_rounding() -> None:
    w = np.random.default_rng(2).standard_normal((16, 64)).astype(np.float32)
    gram = np.eye(64, dtype=np.float32)
    rounded = round_with_feedback(w, feedback_of(gram), gram, "q8")
    values = testing.kernel_blocks(dtype="q8_0", data=rounded.blocks, format="f32")
    np.testing.assert_array_equal(values, testing.kernel_roundtrip(format="q8", w=w))


def test_inputs_that_never_vary_are_no_error() -> None:
    gram = np.zeros((32, 32), np.float32)
    w = np.ones((16, 32), np.float32)
    assert np.isfinite(feedback_of(gram)).all()
    assert round_with_feedback(w, feedback_of(gram), gram, "q4").blocks.shape == (16, 18)


def test_the_inputs_of_the_matrices_are_measured() -> None:
    with gemlet.load(threads=1, weights="f32", kv_cache="f32") as model:
        ids = model.tokenizer.encode(TEXT.read_text("utf-8")[:600])  # more than a piece of 64
        assert len(ids) > 64
        inputs = core_of(model).projection_inputs(ids)
        layers, width = len(model.config.layers), model.config.hidden_size
    assert {name.rpartition(".")[2] for name in inputs} == {"q_proj", "o_proj", "gate_proj", "down_proj"}
    assert len(inputs) == 4 * layers
    assert inputs["layers.0.q_proj"].shape == (len(ids), width)
    assert all(len(values) == len(ids) and np.isfinite(values).all() for values in inputs.values())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that was calibrated on the text without its end."""
    folder = tmp_path_factory.mktemp("calibrated")
    (folder / "text.txt").write_text(TEXT.read_text("utf-8")[:-_UNSEEN], "utf-8")
    gemlet.convert(None, folder / "model", weights="q4", calibrate=folder / "text.txt", threads=1)
    return folder / "model"


@pytest.mark.slow
def test_a_calibrated_model_is_closer(folder: Path) -> None:
    """The calibrated model has a smaller error on a text that the calibration did not use."""
    text = TEXT.read_text("utf-8")[-_UNSEEN:]
    with (
        gemlet.load(threads=1, weights="f32") as exact,
        gemlet.load(threads=1, weights="q4") as plain,
        gemlet.load(folder, threads=1) as calibrated,
    ):
        ids = exact.tokenizer.encode(text)[:500]
        p, q, r = (model.logits(ids).astype(np.float64) for model in (exact, plain, calibrated))
        assert calibrated.memory()["weights"] == plain.memory()["weights"]

    def divergence(logits: NDArray[np.float64]) -> float:
        lp, lq = (x - np.log(np.exp(x).sum(axis=-1, keepdims=True)) for x in (p, logits))
        return float((np.exp(lp) * (lp - lq)).sum(axis=-1).mean())

    assert divergence(r) < 0.8 * divergence(q)


@pytest.mark.slow
def test_texts_of_the_model_itself(tmp_path: Path) -> None:
    gemlet.convert(None, tmp_path / "q5", weights="q5", calibrate=True, threads=1)
    with gemlet.load(tmp_path / "q5", threads=1) as model, gemlet.load(weights="q5", threads=1) as plain:
        assert model.weights == "q5"
        assert not np.array_equal(model.logits([2, 50, 60]), plain.logits([2, 50, 60]))


def test_the_command_line_names_the_formats_for_calibrate(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["convert", str(tmp_path), str(tmp_path / "x"), "--weights", "q8", "--calibrate"]) != 0
    assert "goes with weights='q4' or 'q5'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weights": "q8", "calibrate": True}, "goes with weights='q4' or 'q5'"),
        ({"weights": "q4", "calibrate": True, "merge_adapter": "x"}, "cannot be combined with merge_adapter"),
        ({"weights": "q4", "calibrate": 7}, "calibrate"),
        ({"weights": "q4", "calibrate": b"\0"}, "calibrate"),
    ],
)
def test_wrong_options_of_calibration_are_refused(
    tmp_path: Path, options: dict[str, object], message: str
) -> None:
    with pytest.raises(InvalidRequestError, match=message):
        gemlet.convert(None, tmp_path / "model", **options)  # type: ignore[arg-type]


def test_a_text_that_is_not_there_or_too_short(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match="cannot be read"):
        gemlet.convert(None, tmp_path / "model", weights="q4", calibrate=tmp_path / "none")
    (tmp_path / "short").write_text("A word.")
    with pytest.raises(InvalidRequestError, match="expected 511 or more"):
        gemlet.convert(None, tmp_path / "model", weights="q4", calibrate=tmp_path / "short")
    assert not (tmp_path / "model").exists()
