"""What the pages tell a reader to type can be typed: examples run, commands parse, links lead somewhere."""

import re
import shlex
from pathlib import Path

import click
import pytest
import torch
from torch import nn

from bench import checks, cli, plugins, spec, testing

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^ *```(\w*)\n(.*?)^ *```", re.MULTILINE | re.DOTALL)
EXAMPLES = [code for language, code in BLOCK.findall((ROOT / "docs/plugins.md").read_text(encoding="utf-8")) if language == "python"]
NAMES = ["my-method", "my-gradient", "my-layer"]
COMMANDS = sorted(
    {
        line.split("  # ")[0].strip()
        for page in PAGES
        for language, text in BLOCK.findall(page.read_text(encoding="utf-8"))
        if not language
        for line in text.splitlines()
        if line.strip().startswith("bench ")
    }
)
OF_FILES_THAT_ARE_THERE = ("diff", "verify")  # Their arguments are files of the reader's own.


@pytest.fixture(params=zip(NAMES, EXAMPLES, strict=True), ids=NAMES)
def example(request, tmp_path):
    """The name of an example of plugins.md, and a registry with it alone."""
    name, code = request.param
    (tmp_path / "my_file.py").write_text(code, encoding="utf-8")
    return name, plugins.load([tmp_path / "my_file.py"], only=[]).registry


class Linear(nn.Module):
    """Logits that are weighted sums of the pixels; the mean colour is 0.5."""

    def __init__(self, weights):
        super().__init__()
        self.weights = nn.Parameter(weights)
        self.normalisation = testing.Plain(1)
        self.normalisation.mean.fill_(0.5)

    def forward(self, inputs):
        return inputs.flatten(1) @ self.weights.T


def explainer(name, tmp_path):
    (tmp_path / "my_file.py").write_text(EXAMPLES[NAMES.index(name)], encoding="utf-8")
    return plugins.load([tmp_path / "my_file.py"], only=[]).registry.resolve("explainer", name).part


def test_an_example_keeps_the_promises_of_its_hook(example):
    name, registry = example
    findings = list(checks.run(registry, [name]))
    assert findings
    assert [finding for finding in findings if not finding.passed or finding.reason] == []


def test_the_first_example_is_the_one_in_the_folder():
    own = (ROOT / "docs/examples/my_method.py").read_text(encoding="utf-8")
    assert EXAMPLES[0].split('"""\n', 1)[1] == own.split('"""\n', 1)[1]


def test_the_gradient_example_finds_the_terms_of_a_linear_network(tmp_path):
    """Weights (1, 2, 3, 4) for the class, mean colour 0.5, pixels (0.5, 1, 0, 0.75): 1 · 0, 2 · 0.5, 3 · -0.5 and 4 · 0.25."""
    model = Linear(torch.tensor([[9.0, 9.0, 9.0, 9.0], [1.0, 2.0, 3.0, 4.0]]))
    image = torch.tensor([[[[0.5, 1.0], [0.0, 0.75]]]])
    found = testing.explain(model, explainer("my-gradient", tmp_path), image, torch.tensor([1]), [])
    assert torch.allclose(found, torch.tensor([[[[0.0, 1.0], [-1.5, 1.0]]]]))


def test_the_layer_example_finds_the_length_of_the_gradient(tmp_path):
    """The logit 2P - Q averages four places of each map, so its gradient is (2, -1) / 4 at every place, of length √5 / 4."""
    model = testing.TwoChannelNetwork()
    found = testing.explain(model, explainer("my-layer", tmp_path), testing.TWO_CHANNEL_IMAGE, torch.tensor([0]), model.layers)
    assert torch.allclose(found, torch.full((1, 1, 2, 2), 5**0.5 / 4))


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_on_a_page_can_be_typed(command):
    _, *words = shlex.split(command.replace("…", ""))
    group = cli.main
    while isinstance(group, click.Group) and words:
        name, *words = words
        assert name in group.commands, f"bench has no command '{name}'"
        group = group.commands[name]
    if group.name in OF_FILES_THAT_ARE_THERE:
        return
    values = group.make_context(group.name, words).params
    if (asked := values.get("spec")) and not asked.endswith(".toml"):
        spec.find(asked)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_between_pages_lead_somewhere(page):
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", re.sub(r"`[^`]*`", "", text)):
        if "://" in target:
            continue
        path, _, part = target.partition("#")
        file = page.parent / path if path else page
        assert file.exists(), f"{page.name} links to {target}"
        if part:
            headings = re.findall(r"^#+ (.*)$", file.read_text(encoding="utf-8"), re.MULTILINE)
            assert part in {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}, f"{page.name} links to {target}"
