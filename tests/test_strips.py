"""What a method makes of frames, gathered for the report and shown on its page."""

import importlib

import cv2
import jax.numpy as jnp
import numpy as np

from jaxreid.evaluation.strips import TRACKLETS, method_strips
from jaxreid.report import run_report
from jaxreid.report.page import ReportContents, render
from jaxreid.run.model import start_run


def test_strips_are_of_the_frames_above_them(tmp_path, data_dir, tiny, monkeypatch):
    config = importlib.import_module("configs.baseline").get_config()
    config.dataset.config = "tiny"
    run = start_run(config, tmp_path, data_dir)
    assert method_strips(run, {}, {}) == ()  # most methods have none

    def strip(self, variables, memory, batch):
        shown = batch.frames * jnp.array(run.pixels.std) + jnp.array(run.pixels.mean)
        return {"as it is": shown, "coarse": shown[:, :, ::16, ::16]}

    monkeypatch.setattr(type(run.method), "strip", strip)
    strips = method_strips(run, {}, {})
    assert [strip.modality for strip in strips].count("visible") == TRACKLETS == len(strips) // 2
    assert {strip.modality for strip in strips} == {"visible", "infrared"}
    assert run.compiled["strip_step"].count == 1
    for strip in strips:
        assert len(strip.frames) == config.evaluation.seq_len == len(strip.rows["coarse"])
        decoded = [cv2.imdecode(np.frombuffer(x, np.uint8), cv2.IMREAD_COLOR)[..., ::-1] for x in strip.frames]
        np.testing.assert_allclose(strip.rows["as it is"], np.stack(decoded) / 255, atol=1e-5)

    shown = run_report._strips(type("Found", (), {"strips": strips}))
    assert [name for name, _ in shown[0].rows] == ["frames", "as it is", "coarse"]
    picture = cv2.imdecode(np.frombuffer(shown[0].rows[2][1][0], np.uint8), cv2.IMREAD_COLOR)[..., ::-1]
    assert picture.shape == (128, 64, 3)  # 4 × 2 cells, whole
    np.testing.assert_allclose(picture[16::32, 16::32] / 255, strips[0].rows["coarse"][0], atol=0.01)
    page = render(ReportContents("any", {}, "not scored", strips=shown))
    assert page.count('class="strip"') == len(strips) and "infrared" in page and "coarse, frame 2 of" in page
