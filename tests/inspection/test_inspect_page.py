"""The page of ``fm-mlx inspect`` in a real browser: what is drawn, how wide, and what is said."""

from __future__ import annotations

import html
import io
import json
import os
import re
import shutil
import subprocess

import numpy as np
import pytest
from matplotlib.image import imread
from tiny import some_text

import fm_mlx
from fm_mlx.inspection.observe import observe
from fm_mlx.inspection.page import html_page
from fm_mlx.inspection.tokens import TokenTexts
from fm_mlx.text import encode_text

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
BROWSER = next(filter(None, map(shutil.which, NAMES)), None)

pytestmark = pytest.mark.skipif(
    BROWSER is None, reason=f"no browser: none of {', '.join(NAMES)} is on the PATH"
)

PROMPT = (
    "the <script>document.title = 'taken'</script> </script><!-- & \"quotes\" <b>bold</b>\n"
    + "averylongwordwithoutanyplacetobreakit" * 8
    + "\n"
    + some_text(300)
)

# The ends of viridis: what the largest affinity is drawn in, in the dark and on paper.
BRIGHTEST, DARKEST = [253, 231, 37], [68, 1, 84]

# Shows the page in frames of several widths, acts on it, and writes down what it finds.
PROBE = """<!DOCTYPE html><body style="margin:0">
%(frames)s
<pre id="found"></pre>
<script>
function look(frame) {
  const doc = frame.contentDocument, win = frame.contentWindow;
  const pick = (selector, value) => {
    const box = doc.querySelector(selector);
    box.value = value;
    box.dispatchEvent(new win.Event("change"));
  };
  const heats = [...doc.querySelectorAll(".heat")].map((heat) => {
    const context = heat.getContext("2d");
    return {
      size: [heat.width, heat.height],
      shown: [heat.clientWidth, heat.clientHeight],
      pixels: [...context.getImageData(0, 0, heat.width, heat.height).data],
    };
  });
  const point = (place, target, type) => target.dispatchEvent(
    new win.PointerEvent(type, { clientX: place[0], clientY: place[1], bubbles: true }));
  const heat = doc.querySelector("#layer-1 .heat"), box = heat.getBoundingClientRect();
  const column = box.width / heat.width, row = box.height / heat.height;
  point([box.left + 2.5 * column, box.top + 1.5 * row], heat, "pointermove");
  const tip = doc.getElementById("tip"), place = tip.getBoundingClientRect();
  const result = {
    heats,
    overflow: doc.documentElement.scrollWidth - doc.documentElement.clientWidth,
    cell: tip.textContent,
    tip: [place.left, place.right - doc.documentElement.clientWidth],
    marks: doc.querySelectorAll(".mark:not([hidden])").length,
  };
  point([50, 50], doc.querySelector(".prompt").children[2], "pointerover");
  result.token = tip.textContent;
  point([0, 0], doc.querySelector(".prompt"), "pointerleave");
  result.hidden = tip.hidden;
  result.most = doc.querySelector("#layer-1 .most").textContent;
  pick("#quantity", "theta");
  result.mostWritten = doc.querySelector("#layer-1 .most").textContent;
  pick("#order", "usage");
  result.rows = [...doc.querySelectorAll("#layer-1 .gutter span")].map((span) => span.textContent);
  pick("#zoom", "large");
  result.words = doc.querySelectorAll("#layer-1 .axis .word").length;
  result.overflowLarge = doc.documentElement.scrollWidth - doc.documentElement.clientWidth;
  result.prompt = doc.querySelector(".prompt").textContent;
  result.title = doc.title;
  return result;
}
onload = () => {
  const found = [...document.querySelectorAll("iframe")].map(look);
  document.getElementById("found").textContent = JSON.stringify(found);
};
</script></body>"""


def browse(page, tmp_path, *options):
    """What the browser prints, and its messages about the page."""
    done = subprocess.run(
        [
            str(BROWSER), "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
            "--disable-dev-shm-usage", "--allow-file-access-from-files", "--no-first-run",
            "--enable-logging=stderr", f"--user-data-dir={tmp_path / 'profile'}",
            *options, page.as_uri(),
        ],
        capture_output=True, text=True, timeout=120,
        env={name: value for name, value in os.environ.items() if name != "LD_PRELOAD"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]


@pytest.fixture(scope="module")
def seen(checkpoint):
    model, tokenizer = fm_mlx.load(checkpoint)
    tokens = encode_text(tokenizer, PROMPT)
    return observe(model, [tokens], vocabulary=len(tokenizer)), TokenTexts(tokenizer)


@pytest.fixture(scope="module")
def page(seen, tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "index.html"
    path.write_text(html_page(*seen, "a_model_folder_with_a_long_name" * 3), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def found(page, tmp_path_factory):
    """What the probe finds in frames of the width of a screen and of a phone."""
    folder = tmp_path_factory.mktemp("probe")
    frames = [
        f'<iframe src="{page.as_uri()}" style="border:0;width:{width}px;height:900px;'
        f'color-scheme:{scheme}"></iframe>'
        for width, scheme in ((1280, "light"), (390, "dark"))
    ]
    probe = folder / "probe.html"
    probe.write_text(PROBE % {"frames": "".join(frames)}, encoding="utf-8")
    printed, messages = browse(probe, folder, "--window-size=1800,1000", "--dump-dom")
    assert not messages
    text = re.search(r'<pre id="found">(.*?)</pre>', printed, re.DOTALL)
    assert text is not None and text[1], "the probe found nothing"
    return json.loads(html.unescape(text[1]))


@pytest.mark.parametrize(("frame", "end"), [(0, DARKEST), (1, BRIGHTEST)])
def test_heat_maps_are_drawn(found, seen, frame, end):
    observation, _ = seen
    for heat, use in zip(found[frame]["heats"], observation.layers, strict=True):
        tokens, rows = use.affinity.shape
        assert heat["size"] == [tokens, rows]
        assert min(heat["shown"]) > 50
        pixels = np.array(heat["pixels"]).reshape(rows, tokens, 4)
        assert np.array_equal(pixels[..., 3] > 0, use.affinity.T > 0)
        largest = np.unravel_index(use.affinity.argmax(), use.affinity.shape)
        np.testing.assert_allclose(pixels[largest[::-1]][:3], end, atol=1)
        assert len(np.unique(pixels[..., :3].reshape(-1, 3), axis=0)) > 100


@pytest.mark.parametrize("frame", [0, 1])
def test_nothing_is_wider_than_the_window(found, frame):
    assert found[frame]["overflow"] == found[frame]["overflowLarge"] == 0
    left, beyond = found[frame]["tip"]
    assert left >= 0
    assert beyond <= 0


@pytest.mark.parametrize("frame", [0, 1])
def test_what_a_cell_and_a_token_say(found, seen, frame):
    observation, texts = seen
    looked, use = found[frame], observation.layers[1]
    cell = looked["cell"].splitlines()
    assert cell[0] == f"token 3  {texts(observation.kept[2:3])[0].replace(' ', '·')}"
    alpha = use.affinity[2, 1]
    assert cell[1].startswith("layer 1, row 1")
    if alpha:
        assert cell[2:5] == [
            f"affinity \N{GREEK SMALL LETTER ALPHA}  {alpha:.3f}",
            f"written θ  {use.write_weight[2, 1]:.3f}",
            f"read φ  {use.merge_weight[2, 1]:.3f}",
        ]
    else:
        assert cell[1].endswith("not active")
    assert f"update rate η  {use.update_rate[2]:.3f}" in cell[-1]
    assert looked["marks"] == len(observation.layers)
    best = use.affinity[2].argmax()
    assert f"rows {best} ({use.affinity[2, best]:.2f})" in looked["token"]
    assert looked["hidden"]


@pytest.mark.parametrize("frame", [0, 1])
def test_the_choices(found, seen, frame):
    observation, _ = seen
    looked, use = found[frame], observation.layers[1]
    assert float(looked["most"]) == pytest.approx(use.affinity.max(), abs=6e-4)
    assert float(looked["mostWritten"]) == pytest.approx(use.write_weight.max(), abs=6e-4)
    order = np.argsort(-np.round(use.usage, 6), kind="stable")
    shown = [int(text) for text in looked["rows"][:-2]]  # the last two are those of the rates
    assert shown == order[:: len(order) // len(shown)].tolist()
    assert looked["words"] == len(observation.kept)


def test_the_prompt_is_shown_as_text(found, seen):
    observation, texts = seen
    expected = "".join(texts(observation.kept)).replace("⏎", "⏎\n")
    assert "<script>document.title = 'taken'</script> </script><!--" in expected
    assert found[0]["prompt"] == expected
    assert found[0]["title"].startswith("Inside a_model_folder")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_screenshot(page, tmp_path, scheme):
    """The window is filled with paper, text and heat maps of many colours."""
    picture = tmp_path / "page.png"
    setting = f"--blink-settings=preferredColorScheme={0 if scheme == 'dark' else 1}"
    options = [f"--screenshot={picture}", "--window-size=1280,2400", setting]
    _, messages = browse(page, tmp_path, *options)
    assert not messages
    pixels = imread(io.BytesIO(picture.read_bytes()))[..., :3]
    assert pixels.shape == (2400, 1280, 3)
    assert (pixels[0, 0].mean() < 0.2) == (scheme == "dark")
    # colours of viridis between purple and yellow, as no text has them
    red, green, blue = np.moveaxis(pixels, -1, 0)
    greens = (green - red > 0.2) & (green - blue > 0.05)
    assert greens.sum() > 5000
    assert len(np.unique((255 * pixels[greens]).astype(int), axis=0)) > 20


def test_a_script_that_fails_or_is_not_ours_is_noticed(page, tmp_path):
    """Only the page's own script runs; and what goes wrong is among the messages."""
    text = page.read_text(encoding="utf-8")
    broken = tmp_path / "broken.html"
    foreign = "<script>document.body.id = 'taken'</script></body>"
    broken.write_text(text.replace('"tokens":[', '"tokens":', 1).replace("</body>", foreign))
    printed, messages = browse(broken, tmp_path, "--dump-dom")
    assert any("SyntaxError" in line for line in messages)
    assert any("Content Security Policy" in line for line in messages)
    assert 'id="taken"' not in printed
