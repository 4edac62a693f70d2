"""The glossary of CONTRIBUTING.md holds in pages, configs, comments, docstrings and messages."""

import re
from bisect import bisect_right
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = (".ci", ".github", "benchmarks", "configs", "docs", "fcvit_mm", "tests", "tools")
SUFFIXES = {".cff", ".cfg", ".md", ".py", ".sh", ".toml", ".yaml", ".yml"}

UNIT = (
    "block|box|channel|class|epoch|file|GPU|head|image|iteration|key|layer|model|part|pixel|"
    "process|row|run|second|split|stage|step|tile"
)
# what is counted per something; not those that are verbs, too: "names a file" is right
COUNTED = (
    "bits?|bytes?|boxes|channels|entries|entry|figures|files|floats?|folders?|(?:G?FLOPs?)|GPUs|images?|"
    "integers?|iterations|[kKMG]i?B|layers|lines?|minutes?|ms|ns|numbers?|objects?|operations?|"
    "parameters?|pixels|programs?|rows?|s|seconds?|scalars?|sentences?|tensors|us|values?|workers?"
)
NUMBER = r"(?:an?|one|two|three|four|five|six|seven|eight|nine|ten|some|\d[\d,.]*)"
PARTICLES = (
    "as|at|by|for|from|has|if|in|into|is|like|needs|of|on|or|per|than|that|to|when|where|which|with|"
    "without"
)


class Word(NamedTuple):
    """pattern: what is not written. say: what is. example: text in which the pattern is found."""

    pattern: str
    say: str
    example: str


WORDS = (
    Word(r"picture", "image", "the picture's size"),
    Word(r"\bdata sets?\b", "dataset", "two data sets"),
    Word(r"optimis", "optimize, optimizer", "the optimiser"),
    Word(r"normalis", "normalize", "normalised"),
    Word(r"initialis", "initialize", "is initialised"),
    Word(r"quantis", "quantize", "quantised"),
    Word(r"colour", "color", "a coloured box"),
    Word(r"\bgrey", "gray", "a grey image"),
    Word(r"[a-z]isations?\b", "-ization", "a standardisation"),
    Word(r"labelled|labelling", "labeled", "unlabelled pixels"),
    Word(r"\bcentre|\bmetres?\b", "center", "the centre"),
    Word(r"analys(?:e[ds]?|ing)\b", "analyze", "is analysed"),
    Word(r"neighbour", "neighbor, or halo rows of a row tile", "neighbouring rows"),
    Word(r"behaviour", "behavior", "the behaviour"),
    Word(r"\bstart(?:ing)?[- ](?:values?|weights)\b", "initialization", "keep their start values"),
    Word(r"\bpublished form\b", "reference implementation", "against the published form"),
    Word(r"\bway out\b", "remedy, or just say what to do", "with the way out"),
    Word(r"\bat hand\b", "available", "where no GPU is at hand"),
    Word(r"\bis none of\b", "unknown X; did you mean Y?", "x is none of the keys"),
    Word(r"\bis nothing that\b", "unknown X; did you mean Y?", "x is nothing that MMEngine knows"),
    Word(r"(?<!ground )(?<!ground[-_])\btruths?\b", "ground truth", "image and truth"),
    Word(r"(?<![.\w])strips?\b(?![(_])", "row tile", "a strip of the map"),
    Word(r"\bbeside\b", "compared with, next to", "speed beside its peers"),
    Word(rf"\b(?:{COUNTED}) an? (?:{UNIT})\b", "per: one line per part", "8 images a GPU"),
    Word(rf"\b\d an? (?:{UNIT})\b", "per: one line per part", "2 a GPU"),
    # "a gradient to a part", "one that a model takes" are no measures
    Word(
        rf"(?<![=\w]){NUMBER} (?:[a-z]+ed )?(?!(?:{PARTICLES})\b)[a-z][\w-]* an? (?:{UNIT})\b",
        "per: one line per part",
        "a learned part a stage",
    ),
)


class Text:
    """A file as one line of words: a phrase is found although it is wrapped.

    The marks of comments and the quotes at both ends of a line are left out.
    """

    def __init__(self, text: str) -> None:
        self.words, self.starts = "", []
        for line in text.splitlines():
            self.starts.append(len(self.words))
            line = re.sub(r"""^\s*(?:#+ |>|[rfb]{0,2}["']+)?\s*""", "", line)
            self.words += re.sub(r"""\s*["')]*,?\s*$""", "", line) + " "

    def find(self, pattern: str) -> list[tuple[int, str]]:
        """Return number of line and found text of every match."""
        return [
            (bisect_right(self.starts, found.start()), found[0])
            for found in re.finditer(pattern, self.words, re.IGNORECASE)
        ]


def prose(path: Path) -> str:
    """Return the text of a file without what may name the words: the glossary, old names."""
    text = path.read_text()
    if path.name == "CONTRIBUTING.md":
        text = re.sub(r"### Glossary.*?(?=^## )", "", text, flags=re.DOTALL | re.MULTILINE)
    if path.name == "CHANGELOG.md":
        text = re.sub(r"`[^`]+`", "", text)
    return text


FILES = sorted(
    path
    for folder in (ROOT, *(ROOT / name for name in FOLDERS))
    for path in (folder.glob("*") if folder == ROOT else folder.rglob("*"))
    if (path.suffix in SUFFIXES or path.name in ("Makefile", "Dockerfile", "run"))
    and path.is_file()
    and path != Path(__file__).resolve()
)
TEXTS = {str(path.relative_to(ROOT)): Text(prose(path)) for path in FILES}


@pytest.mark.parametrize("word", WORDS, ids=lambda word: word.example)
def test_words_of_the_field_are_used(word):
    found = [
        f"{name}:{line}: {text!r}, say: {word.say}"
        for name, content in TEXTS.items()
        for line, text in content.find(word.pattern)
    ]
    assert len(TEXTS) > 100
    if found:
        pytest.fail("\n".join(found), pytrace=False)


@pytest.mark.parametrize("word", WORDS, ids=lambda word: word.example)
def test_a_pattern_finds_its_example_across_lines(word):
    start, _, end = word.example.rpartition(" ")
    for text in (word.example, f"# {start}\n# {end}", f'    "{start} "\n    "{end}"'):
        assert Text(text).find(word.pattern), text


@pytest.mark.parametrize(
    "text",
    [
        "text.strip(), line.rstrip()", "side by side", "boxes, masks and\n# ground\n# truth",
        "reads a file", "a model of a class", "one line per part", "the way of a run",
        "one that a model predicts", "names a file, lists a stage",
    ],
)  # fmt: skip
def test_plain_text_passes(text):
    assert [word.say for word in WORDS if Text(text).find(word.pattern)] == []
