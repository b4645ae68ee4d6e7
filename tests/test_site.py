"""The site: what is on it, that it is the same again, and how it behaves in a browser."""

import json
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest
from PIL import Image
from synthetic import line, part, published, star

from bench import gallery, reporting
from bench.errors import InvalidValue
from bench.leaderboard.changes import FOLDED
from bench.site import build
from bench.site.cards import card, paragraphs

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
HOSTILE = "\"><script>alert(1)</script><img src=x onerror=alert(2)> {{ 7*7 }} & 'quoted'"
LICENCE = f"CC BY 2.0 (https://example.org/{'unbreakable' * 10}), see there"
LABELS = ["cat", "dog", HOSTILE, "hen", "owl", "fox", "elk", "bee"]
EXPLAINERS = ("explainer-1", "explainer-2", HOSTILE)


REPORTED = """[[table]]
paper = "A; B; 2020"
where = "Table 1"
compares = "augmenter"
dataset = "cifar100"
model = "resnet50"
explainer = "gradcam"
metrics = ["deletion"]
factor = 0.01
rows = { none = [[22.36, 0.5]], edda = [39.77] }
"""


def boards_folder(folder: Path) -> Path:
    """A folder as `leaderboards/` or `bench-runs/boards` is: lines, rows, a gallery, and the spec of the run."""
    lines, rows = star(seeds=1, images=60, augmenters=4, explainers=5)
    curve = {
        "x": [0.0, 0.5, 1.0],
        "x_label": "share hidden",
        "y_label": "probability of the class that the network had found before a pixel was hidden",
    }
    for number, made in enumerate(lines):
        made["dataset"]["licence"] = LICENCE
        if made["metric"]["name"] in ("deletion", "insertion"):
            made["curve"] = {**curve, "y": [0.9, 0.5 - number / 1000, 0.1]}
    hostile = part(HOSTILE, paper=HOSTILE, claim=HOSTILE, parameters={HOSTILE: HOSTILE})
    lines.append(line(0.3, explainer=hostile, metric="deletion", n=60, curve={**curve, "y_label": HOSTILE, "y": [0.9, 0.4, 0.1]}))
    for number, augmenter in enumerate(("none", "shade")):  # A second board, of two metrics and no cost.
        lines += [line(0.5 + number / 10, augmenter=augmenter, metric=metric, model="tall-net") for metric in ("accuracy", "pointing")]
    published(folder / "data", lines, rows)
    (folder / "runs").mkdir()
    (folder / "runs/synthetic.toml").write_text(f'name = "synthetic"\n# {HOSTILE}\n')
    (folder / "reported.toml").write_text(REPORTED.replace("cifar100", "scenes"))
    _pictures(folder / "gallery/scenes-synthetic")
    drawn = folder / "figures/networks"
    drawn.mkdir(parents=True)
    Image.fromarray(np.full((6, 6, 3), 200, dtype=np.uint8)).save(drawn / "scenes--synthetic--ece--small-net--standard--none.png")
    return folder


def _pictures(folder: Path) -> None:
    folder.mkdir(parents=True)
    wide = 8 * len(LABELS)
    shades = (np.arange(8 * wide * 3) % 256).astype(np.uint8).reshape(8, wide, 3)
    Image.fromarray(shades).save(folder / "images-0.png")
    maps = []
    for number, explainer in enumerate(EXPLAINERS):
        Image.fromarray(np.full((8, wide, 3), 80 * number, dtype=np.uint8)).save(folder / f"map-0-{number}.png")
        maps.append({"augmenter": "none", "explainer": explainer, "file": f"map-0-{number}.png", "targets": LABELS})
    network = {"model": "small-net", "trainer": "standard", "noise": None, "seed": 0, "images": "images-0.png", "width": 8, "height": 8}
    about = {"dataset": "scenes", "run": "synthetic", "licence": LICENCE, "redistributable": True}
    (folder / "index.json").write_text(json.dumps({**about, "networks": [{**network, "labels": LABELS, "maps": maps}]}))


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return boards_folder(tmp_path_factory.mktemp("boards"))


@pytest.fixture(scope="module")
def site(source, tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    build(source, folder)
    return folder


class Links(HTMLParser):
    """What a page points to and what can be pointed at."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.targets: list[str] = []
        self.anchors: set[str] = set()
        self.tags: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        self.tags.append(tag)
        self.targets += [found[name] for name in ("href", "src") if found.get(name)]
        self.anchors |= {found["id"]} if "id" in found else set()


def pages(site: Path) -> dict[Path, Links]:
    return {path: Links(path.read_text()) for path in sorted(site.rglob("*.html"))}


# What is on it


def test_there_is_a_page_for_every_dataset_gallery_method_and_run(site):
    found = {str(path.relative_to(site)) for path in pages(site)}
    assert {"index.html", "scenes.html", "gallery/scenes-synthetic.html", "runs/index.html", "runs/synthetic.html", "methods/index.html"} <= found
    assert {
        "methods/augmenter-augmenter-1.html",
        "methods/explainer-random.html",
        "methods/metric-deletion.html",
        "methods/model-small-net.html",
    } <= found


def test_every_link_leads_somewhere_on_the_site_and_nowhere_else(site):
    every = pages(site)
    for path, links in every.items():
        for target in links.targets:
            assert not re.match(r"[a-z]+:|//", target), f"{path.name} points to {target}"
            name, _, anchor = unquote(target).partition("#")
            there = (path.parent / name).resolve() if name else path
            assert there.is_file(), f"{path.name} points to {target}"
            if anchor:
                assert anchor in every[there].anchors


def test_no_page_may_load_anything_from_elsewhere(site):
    for path, links in pages(site).items():
        assert "default-src 'none'" in path.read_text(), path
        assert "style" not in links.tags, path
    for asset in (site / "assets").iterdir():
        assert not re.search(r"https?://(?!www\.w3\.org/)|@import|url\(", asset.read_text()), asset


def test_text_from_plugins_is_text_on_every_page(site):
    seen = 0
    for path, links in pages(site).items():
        content = path.read_text()
        assert links.tags.count("script") == content.count("<script")
        assert "<script>alert" not in content
        assert "<img src=x" not in content
        seen += "alert(1)" in content
    assert seen >= 4


def test_a_run_page_has_what_it_takes_to_do_it_again(site):
    text = (site / "runs/synthetic.html").read_text()
    for wanted in (
        "pip install bench-xai==0.1.0",
        "bench run synthetic.toml",
        "name = &#34;synthetic&#34;",
        "a processor, 1 thread<",
        "torch 2.11.0",
    ):
        assert wanted in text
    assert line()["dataset"]["fingerprint"] in text
    assert line()["weights"][:19] in text


def test_the_same_lines_make_the_same_site(source, site, tmp_path):
    build(source, tmp_path)
    names = {path.relative_to(site) for path in site.rglob("*") if path.is_file()}
    assert names == {path.relative_to(tmp_path) for path in tmp_path.rglob("*") if path.is_file()}
    assert all((site / name).read_bytes() == (tmp_path / name).read_bytes() for name in names)


def test_without_lines_there_is_no_site(tmp_path):
    with pytest.raises(InvalidValue, match="no result lines"):
        build(tmp_path, tmp_path / "site")


def test_what_metrics_drew_is_on_the_page_of_its_data_set(site):
    text = (site / "scenes.html").read_text()
    assert (
        '<img class="drawn" src="networks/scenes--synthetic--ece--small-net--standard--none.png" alt="synthetic, ece, small-net, standard, none"'
        in text
    )
    assert (site / "networks/scenes--synthetic--ece--small-net--standard--none.png").is_file()


def test_reported_numbers_stand_beside_those_measured_here(tmp_path):
    measured = {"dataset": "cifar100", "model": "resnet50", "explainer": "gradcam", "metric": "deletion"}
    elsewhere = [line(value, augmenter=name, explainer="gradcam", metric="deletion") for name, value in (("none", 0.4), ("edda", 0.3))]
    published(tmp_path / "data", [line(0.25, augmenter="none", **measured), *elsewhere])
    (tmp_path / "reported.toml").write_text(REPORTED)
    build(tmp_path, tmp_path / "site")
    page = (tmp_path / "site/reported.html").read_text()
    assert re.search(r"none\s+0\.2236 ± 0\.005\s+0\.250 \[0\.200, 0\.300\]", plain(page))
    assert re.search(r"edda\s+0\.3977\s+–", plain(page))
    assert '<h3>Measured here: <a href="scenes.html">scenes, small-net, standard</a></h3>' in page
    assert 'href="../reported.html"' in (tmp_path / "site/methods/index.html").read_text()


def plain(page: str) -> str:
    """The text of a page without its tags."""
    return " ".join(re.sub(r"<[^>]+>", " ", page).split())


def test_a_site_without_reported_numbers_does_not_point_to_them(judged):
    assert not (judged / "reported.html").exists()
    assert "reported.html" not in (judged / "index.html").read_text()


def test_networks_of_two_runs_are_counted_once(tmp_path):
    for run in ("first", "second"):
        published(tmp_path / "data", [line(0.5, run=run)], run=run)
    build(tmp_path, tmp_path / "site")
    assert "from 1 networks." in (tmp_path / "site/index.html").read_text()


# What the tests say, on three seeds: differences of 10, 11 and 12 have mean 11, deviation 1, t = 19.1, p = .003 and a half-width of 2.48.

DELETION = {
    ("none", "gradcam"): (0.5, 0.5, 0.5), ("shade", "gradcam"): (0.6, 0.61, 0.62),
    ("none", "random"): (0.8, 0.81, 0.82), ("shade", "random"): (0.9, 0.92, 0.94),
}  # fmt: skip
INSERTION = {
    ("none", "gradcam"): (0.5, 0.5, 0.5), ("shade", "gradcam"): (0.45, 0.5, 0.4),
    ("none", "random"): (0.4, 0.6, 0.45), ("shade", "random"): (0.45, 0.4, 0.55),
}  # fmt: skip
ACCURACY = {"none": (50.0, 51.0, 52.0), "shade": (60.0, 62.0, 64.0), "dim": (40.0, 40.0, 40.0)}


@pytest.fixture(scope="module")
def judged(tmp_path_factory):
    """A site of three seeds, made for what the tests say."""
    folder = tmp_path_factory.mktemp("judged")
    lines = [line(value, augmenter=name, seed=seed) for name, values in ACCURACY.items() for seed, value in enumerate(values)]
    for metric, rows in (("deletion", DELETION), ("insertion", INSERTION)):
        for (augmenter, explainer), values in rows.items():
            lines += [line(value, augmenter=augmenter, explainer=explainer, metric=metric, seed=seed) for seed, value in enumerate(values)]
    published(folder / "data", lines)
    build(folder, folder / "site")
    return folder / "site"


def differences(page: str) -> list[str]:
    return [
        plain(row) for table in re.findall(r'<table class="differences">.*?</table>', page, re.S) for row in re.findall(r"<tr.*?</tr>", table, re.S)
    ]


def test_what_an_augmentation_changes_stands_with_its_interval_and_verdict(judged):
    page = (judged / "scenes.html").read_text()
    networks, maps = differences(page)[1:3], differences(page)[4:]
    assert networks == ["dim -11.00 worse -13.48 to -8.52", "shade +11.00 better 8.52 to 13.48"]
    assert maps[0].startswith("shade gradcam +0.110 worse 0.085 to 0.135 -0.0500")
    assert maps[1].startswith("shade random +0.110 worse 0.085 to 0.135 -0.0167")
    assert '<tr class="floor"><th scope="row">shade</th><th scope="row">random</th>' in page
    assert page.count("Each row less that of <em>none</em>, paired on the same seeds") == 2
    assert page.count("Rows in italics look at no network") == 1


@pytest.mark.parametrize("more", [0, 1])
def test_many_changes_are_folded_away(tmp_path, more):
    names = ["none", *(f"augmenter-{number}" for number in range(FOLDED + more))]
    published(tmp_path / "data", [line(seed + len(name), augmenter=name, seed=seed) for name in names for seed in range(2)])
    build(tmp_path, tmp_path / "site")
    page = (tmp_path / "site/scenes.html").read_text()
    assert len(differences(page)) == 1 + FOLDED + more
    assert (f"<summary>{FOLDED + more} rows</summary>" in page) is bool(more)


def test_rows_that_are_worse_are_counted_too(judged):
    page = plain((judged / "scenes.html").read_text())
    assert "accuracy ↑ shade nothing 1 of 2, 1 worse" in page
    assert "2 of 2 0 of 1, 1 worse" in page  # deletion: above the floors, and worse with the augmentation.


@pytest.mark.parametrize(
    ("method", "said"),
    [
        (
            "explainer-gradcam",
            ("deletion ↓ 1 of 2 ahead of all others, better than its floor", "insertion ↑ 1 of 2 tied with 1 other, not better than its"),
        ),
        (
            "augmenter-shade",
            ("deletion ↓ 2 of 2 behind the best, better than its floor", "insertion ↑ 2 of 2 tied with the best, not better than its"),
        ),
        ("explainer-random", ("deletion ↓ a floor behind the best none × random", "insertion ↑ a floor tied with the best none × random")),
        ("augmenter-dim", ("accuracy ↑ 2 of 2 behind the best, not better than its floor dim",)),
    ],
)
def test_a_place_comes_with_what_the_tests_say_of_it(judged, method, said):
    page = plain((judged / f"methods/{method}.html").read_text())
    for each in said:
        assert each in page


def test_cards_are_read_without_running_plugins():
    code = (
        "import sys\nfrom bench.site.cards import card\nassert 'Paper:' in card('edda')\n"
        "print([name for name in sys.modules if name == 'torch' or name.startswith('bench_plugins.')])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
    assert card("no such plugin") is None


def test_a_card_is_split_into_its_paragraphs():
    found = paragraphs("EDDA: what it does\nwith `tau`.\n\nPaper: an equation.\n\nNo heading here.")
    assert found == [("", ["EDDA: what it does with ", "tau", "."]), ("Paper", ["an equation."]), ("", ["No heading here."])]
    assert paragraphs("") == []


# The pictures of a run


def test_a_run_leaves_its_pictures_for_the_gallery(planned, ran, store, tmp_path):
    about = {"augmenters": ["none", "shade"], "explainers": ["random", "slope"], "images": 12, "seeds": 2, "name": "shown"}
    ran(**about)
    (path,) = gallery.write(planned(**about), store, tmp_path)
    found = json.loads(path.read_text())
    (network,) = found["networks"]
    assert (found["run"], network["seed"]) == ("shown", 0)
    assert [(each["augmenter"], each["explainer"]) for each in network["maps"]] == [
        ("none", "random"), ("none", "slope"), ("shade", "random"), ("shade", "slope"),
    ]  # fmt: skip
    count = len(network["labels"])
    assert count == gallery.IMAGES
    for name in (network["images"], *(each["file"] for each in network["maps"])):
        assert Image.open(path.parent / name).size == (count * network["width"], network["height"])
    assert all(len(each["targets"]) == count for each in network["maps"])
    before = {each.name: each.read_bytes() for each in path.parent.iterdir()}
    gallery.write(planned(**about), store, tmp_path)
    assert {each.name: each.read_bytes() for each in path.parent.iterdir()} == before


@pytest.mark.parametrize("free", [True, False])
def test_only_pictures_that_may_be_passed_on_are_published(tmp_path, free):
    store, boards = tmp_path / "store", tmp_path / "leaderboards"
    made = line(0.5, run="mine")
    made["dataset"]["redistributable"] = free
    published(store / "boards/data", [made], run="mine")
    _pictures(store / "boards/gallery/scenes-mine")
    reporting.publish_run("mine", store, boards)
    assert (boards / "gallery/scenes-mine/index.json").exists() is free


# In a browser


@pytest.fixture(scope="module")
def chromium():
    sync = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if CHROMIUM is None:
        pytest.skip("there is no Chromium")
    quiet = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
    with sync.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=[*quiet, "--disable-component-update", "--disable-sync"])
        yield browser
        browser.close()


@pytest.fixture
def visit(chromium, site):
    """Opens a page of the site; at the end nothing may have been complained of or asked for from elsewhere."""
    troubles, opened = [], []

    def open_page(name, width=1280, height=900, dark=False):
        page = chromium.new_page(viewport={"width": width, "height": height}, color_scheme="dark" if dark else "light")
        page.on("console", lambda message: troubles.append(message.text) if message.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: troubles.append(str(error)))
        page.on("request", lambda request: None if request.url.startswith(site.as_uri()) else troubles.append(request.url))
        page.on("dialog", lambda dialog: troubles.append(dialog.message))
        page.goto((site / name).as_uri())
        opened.append(page)
        return page

    yield open_page
    for page in opened:
        page.close()
    assert troubles == []


def shown(page, column=1):
    """What stands in one column of the rows that are shown, of the table of explanations."""
    script = "([rows, column]) => rows.filter(row => !row.hidden).map(row => row.cells[column].dataset.value ?? null)"
    return page.evaluate(f"([id, column]) => ({script})([[...document.querySelectorAll(`#${{id}} .numbers tbody tr`)], column])", ["table-2", column])


def test_a_table_sorts_by_any_column_and_what_is_missing_comes_last(visit):
    page = visit("scenes.html")
    page.click("#table-2 thead button:has-text('deletion')")
    values = shown(page, 2)
    assert [float(value) for value in values] == sorted(float(value) for value in values)
    assert page.get_attribute("#table-2 thead th:nth-child(3)", "aria-sort") == "ascending"
    page.keyboard.press("Enter")  # The button has the focus: the keyboard does what the mouse does.
    assert [float(value) for value in shown(page, 2)] == sorted((float(value) for value in values), reverse=True)
    page.click("#table-2 thead button:has-text('insertion')")
    insertion = shown(page, 3)
    assert insertion[-1] is None  # One row has no insertion.
    assert [float(value) for value in insertion[:-1]] == sorted((float(value) for value in insertion[:-1]), reverse=True)
    page.click("#table-2 thead button:has-text('explainer')")
    assert shown(page, 1) == sorted(shown(page, 1), key=str.lower)


def test_rows_are_filtered_by_name_and_floors_and_columns_hidden(visit):
    page = visit("scenes.html")
    page.fill("#table-2 .filter", "augmenter-2 explainer")
    assert shown(page, 1) == ["explainer-1"]
    assert page.inner_text("#table-2 .count") == "1 of 15 rows"
    page.fill("#table-2 .filter", "")
    page.uncheck("#table-2 .floors")
    assert not {"random", "centre"} & set(shown(page, 1))
    assert page.is_visible("#table-2 thead th:has-text('pointing')")
    page.uncheck("#table-2 .category[value='localisation']", force=True)
    assert not page.is_visible("#table-2 thead th:has-text('pointing')")
    page.uncheck("#table-2 .spreads")
    assert page.locator("#table-2 .spread:visible").count() == 0


def test_curves_are_drawn_for_the_rows_that_are_chosen(visit):
    page = visit("scenes.html")
    lines = page.locator("#table-2 .curves .series")
    before = lines.count()
    assert before == 6
    page.locator("#table-2 .legend-list input").first.uncheck()
    assert lines.count() == before - 1
    page.select_option("#table-2 .curves .which", label="insertion ↑")
    assert page.get_attribute("#table-2 .curves svg", "aria-label").startswith("insertion ↑:")


def test_quality_is_drawn_against_any_cost(visit):
    page = visit("scenes.html")
    points = page.locator("#table-2 .pareto .point")
    assert points.count() == 14
    assert page.locator("#table-2 .pareto .point.front").count() >= 1
    points.first.focus()
    assert "×" in page.inner_text("#table-2 .pareto .picked")
    page.select_option("#table-2 .pareto .up", label="pointing ↑ (%)")
    assert page.get_attribute("#table-2 .pareto svg", "aria-label").startswith("pointing ↑ (%) against throughput")


def test_a_board_without_a_cost_does_not_speak_of_one(visit):
    page = visit("scenes.html")
    titles = "[...document.querySelectorAll('.pareto')].map(figure => figure.previousElementSibling.textContent)"
    assert page.evaluate(titles) == ["Quality against cost", "One metric against another"]


def test_a_floor_that_nothing_beats_is_still_hollow(visit):
    page = visit("scenes.html")
    fill = "([id, name]) => getComputedStyle(document.querySelector(`#${id} ${name}`))"
    hollow = page.evaluate(f"({fill})(['table-2', '.pareto .point.floor.front']).fill")
    assert hollow == page.evaluate(f"({fill})(['table-2', '.pareto .canvas']).backgroundColor")
    assert hollow != page.evaluate(f"({fill})(['table-2', '.pareto .point.front:not(.floor)']).fill")


@pytest.mark.parametrize("width", [1280, 390])
def test_the_names_of_axes_stay_inside_their_figure(visit, width):
    page = visit("scenes.html", width)
    outside = """[...document.querySelectorAll('.axis .name')].filter(name => {
        const [inner, outer] = [name, name.closest('.canvas')].map(each => each.getBoundingClientRect());
        return inner.left < outer.left || inner.right > outer.right || inner.top < outer.top || inner.bottom > outer.bottom;
    }).map(name => name.textContent)"""
    assert page.locator(".curves .axis .name").count() >= 2
    assert page.evaluate(outside) == []


def test_what_a_table_has_beyond_its_edge_is_announced_until_it_is_seen(visit):
    page = visit("scenes.html", 390, 844)
    box = page.locator("#table-2 .scroll").first
    page.wait_for_function("document.querySelector('#table-2 .scroll').classList.contains('beside')")
    assert box.evaluate("box => getComputedStyle(box).maskImage").startswith("linear-gradient")
    box.evaluate("box => box.scrollTo(box.scrollWidth, box.scrollHeight)")
    page.wait_for_function("!document.querySelector('#table-2 .scroll').matches('.below, .beside')")


def test_headings_do_not_touch_their_tables(visit):
    page = visit("scenes.html")
    gaps = """[...document.querySelectorAll('h4 + .scroll')].map(
        box => box.getBoundingClientRect().top - box.previousElementSibling.getBoundingClientRect().bottom)"""
    assert min(page.evaluate(gaps)) >= 8


def test_a_picture_opens_turns_and_switches_its_overlay(visit):
    page = visit("gallery/scenes-synthetic.html")
    page.click(".open[data-explainer='explainer-2']")
    assert page.is_visible(".viewer")
    assert page.inner_text(".viewer h2") == "explainer-2, trained with none"

    def opacity():
        page.wait_for_timeout(250)
        return float(page.evaluate("getComputedStyle(document.querySelector('.viewer .map')).opacity"))

    assert opacity() == pytest.approx(0.65)
    page.check(".viewer .mode[value='image']", force=True)
    assert opacity() == 0
    page.check(".viewer .mode[value='map']", force=True)
    assert opacity() == 1
    assert page.inner_text(".viewer .about") == "The image shows cat; the map is for cat."
    page.click(".viewer .next")
    assert page.inner_text(".viewer .about") == "The image shows dog; the map is for dog."
    for label in ("cat", "bee"):  # Before the first comes the last.
        page.keyboard.press("ArrowLeft")
        assert page.inner_text(".viewer .about") == f"The image shows {label}; the map is for {label}."
    page.keyboard.press("ArrowRight")
    assert page.inner_text(".viewer .about") == "The image shows cat; the map is for cat."
    page.keyboard.press("Escape")
    assert not page.is_visible(".viewer")


def test_the_gallery_shows_another_image_and_another_strength(visit):
    page = visit("gallery/scenes-synthetic.html")
    page.check(".picker .image[value='1']", force=True)
    assert page.inner_text(".label .shown") == "dog"
    place = "new DOMMatrix(getComputedStyle(document.querySelector('.open .map')).transform).e / document.querySelector('.open .tile').clientWidth"
    assert page.evaluate(place) == pytest.approx(-1, abs=0.02)
    page.evaluate("() => { const range = document.querySelector('.strength'); range.value = 20; range.dispatchEvent(new Event('input')); }")
    page.wait_for_timeout(250)
    assert float(page.evaluate("getComputedStyle(document.querySelector('.open .map')).opacity")) == pytest.approx(0.2)


def test_a_gallery_opens_with_the_keyboard_alone(visit):
    page = visit("gallery/scenes-synthetic.html")
    page.focus(".open[data-explainer='explainer-1']")
    page.keyboard.press("Enter")
    assert page.is_visible(".viewer")
    assert page.evaluate("document.querySelector('.viewer').contains(document.activeElement)")


def test_light_and_dark_can_be_switched_and_follow_the_system(visit):
    background = "getComputedStyle(document.body).backgroundColor"
    light, dark = (visit("index.html", dark=dark).evaluate(background) for dark in (False, True))
    assert light != dark
    page = visit("index.html")
    page.click("#theme")
    assert page.evaluate(background) == dark
    page.click("#theme")
    assert page.evaluate(background) == light


PAGES = ("index", "reported", "scenes", "gallery/scenes-synthetic", "methods/index", "methods/metric-deletion", "runs/index", "runs/synthetic")


@pytest.mark.parametrize(("width", "height"), [(1280, 900), (390, 844)])
def test_no_page_is_wider_than_the_screen(visit, site, width, height):
    page = visit("index.html", width, height)
    for name in PAGES:
        page.goto((site / f"{name}.html").as_uri())
        assert page.evaluate("document.documentElement.scrollWidth") <= width, name
        assert page.evaluate("(list => list.scrollWidth <= list.clientWidth)(document.querySelector('.top ul'))"), name
