from __future__ import annotations

import math

import pytest

from polyfed.report.formats import (
    duration,
    gain,
    gain_unit,
    label,
    listed,
    lower_is_better,
    main_metric,
    plain,
    plural,
    short,
    shown,
    shown_gain,
    size,
    span,
    unit,
)
from polyfed.report.palette import COLOURS, OTHER, palette_of


@pytest.mark.parametrize(
    ("metrics", "chosen"),
    [
        (["loss", "accuracy"], "accuracy"),
        (["mae", "mse"], "mse"),
        (["loss", "psnr"], "psnr"),
        (["mae", "mse", "pearson"], "mse"),
        (["mae", "mse", "psnr", "ssim"], "mse"),
        (["loss"], "loss"),
        ([], None),
    ],
)
def test_the_metric_a_task_is_judged_by(metrics: list[str], chosen: str | None) -> None:
    assert main_metric(metrics) == chosen


def test_metrics_are_written_in_their_unit() -> None:
    assert shown("accuracy", 0.9342) == "93.4 %"
    assert shown("mse", 0.051234) == "0.05123"
    assert shown("accuracy", math.nan) == "n/a"
    assert shown("psnr", 21.3456) == "21.35 dB"
    assert (unit("psnr"), unit("accuracy"), unit("ssim")) == (" (dB)", " (%)", "")
    assert (plain("psnr", 100.0), plain("ssim", 0.98765), plain("pearson", -0.5)) == ("100.00", "0.988", "-0.500")
    assert shown("psnr", math.nan) == "n/a"


@pytest.mark.parametrize(("numbers", "text"), [([20], "20"), ([30, 4, 4], "4–30"), ([1000, 1000], "1,000"), ([], "0")])
def test_a_range_of_numbers(numbers: list[int], text: str) -> None:
    assert span(numbers) == text


def test_a_gain_is_positive_where_things_got_better() -> None:
    assert gain("accuracy", 0.9, 0.8) == pytest.approx(0.1)
    assert gain("mse", 0.9, 0.8) == pytest.approx(-0.1)
    assert lower_is_better("loss.digit")
    assert shown_gain("accuracy", -0.0213) == "\N{MINUS SIGN}2.1 points"
    assert shown_gain("mse", 0.5) == "+0.5"
    assert shown_gain("psnr", -0.625) == "\N{MINUS SIGN}0.62 dB"
    assert shown_gain("ssim", 0.0125) == "+0.013"
    assert [gain_unit(metric) for metric in ("accuracy", "psnr", "mse")] == ["points", "dB", ""]


@pytest.mark.parametrize("metric", ["psnr", "ssim", "pearson", "accuracy"])
def test_more_is_better(metric: str) -> None:
    assert not lower_is_better(metric)
    assert gain(metric, 0.9, 0.8) == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (999, "999 B"), (1234, "1.23 kB"), (5_230_000_000, "5.23 GB"), (2e17, "2e+05 TB"), (math.nan, "n/a")],
)
def test_sizes(count: float, text: str) -> None:
    assert size(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.41, "0.41 s"), (65, "1 min 05 s"), (7620, "2 h 07 min"), (math.nan, "n/a")]
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_words() -> None:
    assert plural(1, "client") == "1 client"
    assert plural(1200, "client") == "1,200 clients"
    assert plural(2, "reply", "replies") == "2 replies"
    assert listed(["a", "b", "c"]) == "a, b and c"
    assert listed([]) == ""
    assert short("one\ntwo  three", 8) == "one two…"
    assert label("<b>&") == "&lt;b&gt;&amp;"


def test_colours_run_out_gracefully() -> None:
    few = palette_of({"image": 1, "audio": 5, "audio+image": 2})
    assert dict(few.colours) == dict(zip(("audio", "image", "audio+image"), COLOURS, strict=False))
    many = palette_of({f"m{k:02}": k for k in range(30)})
    assert len(many.colours) == len(COLOURS)
    assert many.folded == 30 - (len(COLOURS) - 1)
    assert many.entry("m29") == "m29"  # the largest keep a colour of their own
    assert many.entry("m00") == OTHER
    assert many.belongs(OTHER)("m00")
    assert not many.belongs(OTHER)("m29")
