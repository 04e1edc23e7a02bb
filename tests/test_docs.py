"""The documents say what the code does: names, defaults, examples, links."""

from __future__ import annotations

import dataclasses
import inspect
import json
import re
import shlex
import types
import typing
from pathlib import Path

import pydantic
import pytest
import yaml

from reelscribe import CAPTIONERS, SELECTORS, VideoCaptioningFromVLMMapper
from reelscribe.cli import main
from reelscribe.data import BY_NAME, BY_SUFFIX, SINKS, SOURCES
from reelscribe.data.folder import VIDEO_SUFFIXES
from reelscribe.models import ModelSpec
from reelscribe.models.captioner import HF_NAMES, Captioner, GenerationConfig, PromptOptions
from reelscribe.models.loading import HFOptions
from reelscribe.models.server.captioner import ServerOptions
from reelscribe.models.vllm.arguments import DEFAULTS
from reelscribe.models.vllm.captioner import VLLMOptions
from reelscribe.recipe import parse_recipe
from reelscribe.settings import ClusterSettings, RunSettings, operator_settings, part_settings, settings_of
from reelscribe.types import FAILURE_KINDS

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
CONTRIBUTING = ROOT / "CONTRIBUTING.md"
OPERATOR_PAGE = ROOT / "docs/operators/video_captioning_from_vlm_mapper.md"
DESIGN = ROOT / "docs/design"
ROOMS = ("docs", "src", "training")
PAGES = sorted([*ROOT.glob("*.md"), *(page for room in ROOMS for page in (ROOT / room).rglob("*.md"))])
RUN_MARK = "<!-- run -->"


def named(path):
    return str(path.relative_to(ROOT))


def text_of(path):
    return path.read_text("utf-8")


def blocks(text, language):
    """(line before the block, code) of every fenced block of a language."""
    fences = re.finditer(r"^```(\w*)[^\n]*\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    return [(lead_of(text[: fence.start()]), fence[2]) for fence in fences if fence[1] == language]


def lead_of(before):
    lines = [line for line in before.splitlines() if line.strip()]
    return lines[-1].strip() if lines else ""


def without_code(text):
    return re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE)


def section(text, heading):
    """What stands under a heading, up to the next heading of any level."""
    head = re.search(rf"^#+ [^\n]*{re.escape(heading)}[^\n]*\n", text, re.MULTILINE)
    assert head is not None, f"there is no heading with {heading!r}"
    return re.split(r"^#+ ", text[head.end() :], maxsplit=1, flags=re.MULTILINE)[0]


def table(text):
    """Rows of the tables in a text, as lists of cells without back quotes; `\\|` is a bar inside a cell."""
    rows = [line.strip().strip("|") for line in text.splitlines() if line.lstrip().startswith("| `")]
    cells = [[cell.strip() for cell in re.split(r"(?<!\\)\|", row)] for row in rows]
    return [[cell.strip("`").replace("\\|", "|") for cell in row] for row in cells]


# the operator page

SHOWN_TYPES = {"captioner": Captioner | ModelSpec | None}
"""Parameters whose annotation says less than the page does."""


def shown_type(hint):
    """A type as the operator page writes it."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return " | ".join(shown_type(part) for part in typing.get_args(hint))
    if typing.get_origin(hint) is typing.Annotated:
        inner, field = typing.get_args(hint)
        if isinstance(field, pydantic.AfterValidator):
            return shown_type(inner)
        (rule,) = field.metadata
        (bound,) = dataclasses.astuple(rule)
        return f"Annotated[{shown_type(inner)}, {type(rule).__name__}({bound})]"
    if typing.get_origin(hint) is not None:
        return str(hint).replace("typing.", "")
    return "None" if hint is types.NoneType else getattr(hint, "__name__", str(hint))


def parameters():
    return inspect.signature(VideoCaptioningFromVLMMapper).parameters


def parameter_tables():
    page = text_of(OPERATOR_PAGE)
    return table(section(page, "Parameter Configuration")), table(section(page, "Extra arguments"))


def run_table():
    return table(section(text_of(OPERATOR_PAGE), "Options of a run"))


def wrong_rows(rows, settings):
    """Rows of a table that say something else than the settings: type, default, flag, sentences in both languages."""
    shown = {row[0]: row[1:] for row in rows}
    due = {
        name: [shown_type(SHOWN_TYPES.get(name, one.hint)), repr(one.default), one.option.flag, one.whole_text]
        for name, one in settings.items()
    }
    found = {name: [*row[:3], row[3].partition("<br>")[0]] for name, row in shown.items()}
    chinese = {name for name, row in shown.items() if re.search("[\u4e00-\u9fff]", row[3].partition("<br>")[2])}
    return {name for name in {**due, **found} if due.get(name) != found.get(name) or name not in chinese}


def test_every_parameter_stands_in_the_operator_page_in_order():
    by_position, by_keyword = parameter_tables()
    assert [row[0] for row in by_position + by_keyword] == list(parameters())
    kinds = [parameter.kind for parameter in parameters().values()]
    assert kinds.count(inspect.Parameter.POSITIONAL_OR_KEYWORD) == len(by_position)


@pytest.mark.parametrize("name", parameters())
def test_parameters_have_their_defaults_and_types(name):
    rows = {row[0]: row for part in parameter_tables() for row in part}
    hints = {**typing.get_type_hints(VideoCaptioningFromVLMMapper.__init__, include_extras=True), **SHOWN_TYPES}
    assert rows[name][1:3] == [shown_type(hints[name]), repr(parameters()[name].default)]


def test_every_setting_stands_in_the_operator_page_with_its_flag_in_both_languages():
    by_position, by_keyword = parameter_tables()
    assert wrong_rows(by_position + by_keyword, operator_settings()) == set()
    assert wrong_rows(run_table(), {**settings_of(RunSettings), **settings_of(ClusterSettings)}) == set()


def test_parts_of_parameters_stand_in_the_operator_page_with_their_flags():
    page = text_of(OPERATOR_PAGE)
    shown = {
        row[0]: row[2]
        for heading in ("`sampling_params`", "`model_params`", "Behind a server")
        for row in table(section(page, heading))
    }
    named = {name: one.option.flag for name, one in part_settings().items()}
    assert {name: flag for name, flag in shown.items() if flag} == {
        name: flag for name, flag in named.items() if name in shown
    }
    assert [flag for flag in named.values() if f"`{flag}`" not in page] == []


@pytest.mark.parametrize(("heading", "model"), [("`sampling_params`", GenerationConfig), ("`model_params`", HFOptions)])
def test_settings_stand_in_the_operator_page_with_their_defaults(heading, model):
    shown = {row[0]: row[1] for row in table(section(text_of(OPERATOR_PAGE), heading))}
    fields = model.model_fields.items()
    assert shown == {name: repr(field.get_default(call_default_factory=True)) for name, field in fields}


@pytest.mark.parametrize(("heading", "model"), [("With vLLM", VLLMOptions), ("Behind a server", ServerOptions)])
def test_settings_of_other_back_ends_stand_in_the_operator_page_with_their_defaults(heading, model):
    rows = table(section(text_of(OPERATOR_PAGE), heading))
    shown = {row[0]: row[1].strip("`") for row in rows if row[0] not in DEFAULTS or row[0] in model.model_fields}
    own = {name: field for name, field in model.model_fields.items() if name not in PromptOptions.model_fields}
    assert shown == {name: "required" if field.is_required() else repr(field.default) for name, field in own.items()}


def test_every_default_of_the_engine_stands_in_the_operator_page_with_its_reason():
    rows = {row[0]: row for row in table(section(text_of(OPERATOR_PAGE), "With vLLM"))}
    assert [name for name in rows if name in DEFAULTS] == list(DEFAULTS)
    assert all(len(rows[name]) == 3 and rows[name][2] for name in DEFAULTS)


def test_the_hub_names_of_settings_stand_in_the_operator_page():
    told = section(text_of(OPERATOR_PAGE), "`sampling_params`")
    assert [name for name in (*HF_NAMES, "do_sample") if f"`{name}`" not in told] == []


def test_every_kind_of_failure_stands_in_the_operator_page():
    assert [row[0] for row in table(section(text_of(OPERATOR_PAGE), "Failures"))] == list(FAILURE_KINDS)


def examples():
    """(name, python, input rows, output rows) of every example of the operator page."""
    shown = text_of(OPERATOR_PAGE).partition("Effect demonstration")[2].partition("\n## ")[0]
    for part in re.split(r"^### ", shown, flags=re.MULTILINE)[1:]:
        ((_, code),) = blocks(part, "python")
        given, made = ([json.loads(line) for line in rows.splitlines()] for _, rows in blocks(part, "json"))
        yield pytest.param(code, given, made, id=part.splitlines()[0])


@pytest.mark.parametrize(("code", "given", "made"), list(examples()))
def test_the_examples_of_the_operator_page_are_true(code, given, made):
    (_, start), *_ = [block for block in blocks(text_of(OPERATOR_PAGE), "python") if "CAPTIONS" in block[1]]
    names = {}
    exec(compile(start + code, named(OPERATOR_PAGE), "exec"), names)
    assert names["op"].run(given) == made


# README and CONTRIBUTING


@pytest.mark.parametrize("command", sorted(main.commands))
def test_every_command_stands_in_the_readme(command):
    assert re.search(rf"\breelscribe {command}\b", text_of(README))


@pytest.mark.parametrize("name", [*CAPTIONERS, *SELECTORS, *dict.fromkeys([*SOURCES, *SINKS, *BY_SUFFIX])])
def test_every_back_end_selector_and_format_stands_in_the_readme(name):
    assert re.search(rf"(?<![\w.]){re.escape(name)}(?![\w.]*\w)", text_of(README))


def test_the_table_of_formats_says_what_is_read_and_written():
    """A format is read, or written, if and only if its row of the table says so."""
    there = [
        line.split("|")[1:-1] for line in section(text_of(README), "Data in, data out").splitlines() if "|" in line
    ]
    head, _, *rows = [[cell.strip() for cell in row] for row in there]
    assert head == ["format", "named by", "read", "written"]
    for table, place in ((dict.fromkeys([*SOURCES, ".lance"]), 2), (BY_SUFFIX, 3)):
        told = {suffix for row in rows if row[place].startswith(("yes", "`.")) for suffix in suffixes(row[1])}
        videos = set(VIDEO_SUFFIXES) if place == 3 else set()
        assert told - videos == set(table) - videos
    assert set(re.findall(r"--format (\w+)", " ".join(row[3] for row in rows))) == set(BY_NAME)
    (choice,) = [option for option in main.commands["caption"].params if option.name == "format"]
    assert list(choice.type.choices) == list(BY_NAME)


def suffixes(cell):
    """The suffixes that a cell of the table names."""
    return re.findall(r"`(\.[\w.]+)`", cell)


def test_parameters_in_the_readme_have_their_defaults():
    shown = {row[0]: row[2] for row in table(section(text_of(README), "Parameters"))}
    assert shown == {name: repr(parameters()[name].default) for name in shown}
    assert [row[0] for row in parameter_tables()[0]] == list(shown)


def test_options_in_the_readme_are_there():
    there = {option for command in main.commands.values() for part in command.params for option in part.opts}
    assert set(re.findall(r"(?<=`)--[a-z-]+", text_of(README))) - {"--help"} <= there


@pytest.mark.parametrize("path", sorted((ROOT / "src/reelscribe").glob("[!_]*")), ids=lambda path: path.name)
def test_every_room_stands_in_the_layout(path):
    layout = section(text_of(CONTRIBUTING), "Layout")
    names = [path.name] if path.is_file() else [f"{path.name}/", *(part.name for part in path.glob("[!_]*.py"))]
    assert [name for name in names if not re.search(rf"(?<![\w/]){re.escape(name)}", layout)] == []


def test_every_make_target_stands_in_contributing():
    targets = re.findall(r"^([a-z-]+):.*##", text_of(ROOT / "Makefile"), re.MULTILINE)
    assert [target for target in targets if f"`make {target}`" not in text_of(CONTRIBUTING)] == []


# every page


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_relative_links_lead_to_files(page):
    links = re.findall(r"\]\(([^)\s]+)\)|<img[^>]* src=\"([^\"]+)\"", without_code(text_of(page)))
    targets = [target.partition("#")[0] for pair in links for target in pair if target and "://" not in target]
    assert [target for target in targets if target and not (page.parent / target).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_nothing_is_left_to_fill_in(page):
    assert re.findall(r"@@\w+@@|TODO|FIXME", text_of(page)) == []


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_python_blocks_compile(page):
    for _, code in blocks(text_of(page), "python"):
        compile(code, named(page), "exec")


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_commands_in_blocks_have_the_options_they_name(page):
    for language in ("", "sh", "bash", "console"):
        for _, code in blocks(text_of(page), language):
            for line in code.replace("\\\n", " ").splitlines():
                words = shlex.split(line.removeprefix("$ "), comments=True) if "reelscribe " in line else []
                if words[:1] == ["reelscribe"] and words[1] in main.commands:
                    main.commands[words[1]].make_context(words[1], words[2:], resilient_parsing="--help" in words)


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_recipes_in_blocks_can_be_read(page):
    for _, code in blocks(text_of(page), "yaml"):
        if "process:" in code:
            parse_recipe(yaml.safe_load(code))


def test_marked_blocks_of_the_readme_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for lead, code in blocks(text_of(README), "python"):
        if lead == RUN_MARK:
            exec(compile(code, named(README), "exec"), {"__name__": "__main__"})


def test_design_pages_are_listed_and_say_why_what_and_what_follows():
    pages = sorted(page.name for page in DESIGN.glob("0*.md"))
    assert re.findall(r"\]\((0[^)]*\.md)\)", text_of(DESIGN / "README.md")) == pages
    for name in pages:
        text = text_of(DESIGN / name)
        assert re.match(rf"# {name[:4]} \w", text)
        assert re.findall(r"^## (.*)$", text, re.MULTILINE) == ["Context", "Decision", "Consequences"]
