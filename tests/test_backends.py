"""Back ends by name: the ones that are built in, and those that installed packages bring."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from packages import forget, on_path, reelscribe, write_package
from reelscribe import CAPTIONERS, ModelError, ModelSpec, SettingsError, load_captioner
from reelscribe import VideoCaptioningFromVLMMapper as Operator
from reelscribe.cli import main
from reelscribe.data import Target, open_source
from reelscribe.models import BACKENDS, model_revision
from reelscribe.models.captioner import DEFAULT_MODEL
from reelscribe.recipe import parse_recipe
from reelscribe.runners.run.identity import RunIdentity, command_of
from reelscribe.runners.settings import build_operator
from rows import jsonl, load

SERVER = {"base_url": "http://host:8000/v1"}

ECHO = '''
"""A captioner that says what it was shown, as somebody's package would have it."""

from typing import Annotated

from pydantic import Field

from reelscribe import Candidate, CaptionResult, FramePolicy
from reelscribe.models.backends import Backend
from reelscribe.models.captioner import PromptOptions


class EchoOptions(PromptOptions):
    voice: str = "plain"
    at_once: Annotated[int, Field(gt=0)] = 4
    key: str | None = None
    door: str | None = None


class EchoCaptioner:
    def __init__(self, spec):
        self.policy = FramePolicy(num_frames=2).override(spec.frames)
        self.options = EchoOptions(**spec.options)
        self.model = spec.model
        self.notes = [f"echo of {spec.model}, {self.options.at_once} at once"]

    @classmethod
    def from_spec(cls, spec):
        if spec.model == "broken":
            raise RuntimeError("no weights")
        return None if spec.model == "nothing" else cls(spec)

    def caption(self, clips):
        for request, clip in clips:
            texts = [f"{self.options.voice} {len(clip.frames)} frames, {request.prompt[:8]}, {i}"
                     for i in range(request.num_candidates)]
            yield CaptionResult(request.id, tuple(map(Candidate, texts)))

    def close(self):
        pass


def revision(spec):
    return f"{spec.model}-r1"


ROW = Backend(
    captioner="echo_captioner:EchoCaptioner",
    options="echo_captioner:EchoOptions",
    advice={"loudness": "say voice"},
    size_option="at_once",
    gpus=lambda options: 0.5,
    revision=revision,
    free_options=frozenset({"at_once", "key"}),
    secret_options=frozenset({"key"}),
    default_model="parrot",
)
SERVED = Backend(captioner="echo_captioner:EchoCaptioner", address_option="door")
NO_ROW = "Backend"
MISSPELT = Backend(captioner="echo_captioner:EkoCaptioner")
'''
POINTS = {"echo": "echo_captioner:ROW", "served-echo": "echo_captioner:SERVED", "misspelt": "echo_captioner:MISSPELT"}


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A folder with the package."""
    return write_package(
        tmp_path / "site", "echo-captioner", modules={"echo_captioner": ECHO}, points={"reelscribe.backends": POINTS}
    )


@pytest.fixture
def echo(site: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The package, installed in this process."""
    on_path(monkeypatch, site)
    yield
    forget()


@pytest.fixture
def rows(tmp_path: Path, video: Callable[[str], Path]) -> Path:
    """Three videos, one of them gone."""
    paths = [str(video("h264.mp4")), str(tmp_path / "gone.mp4"), str(video("hevc.mp4"))]
    return jsonl(tmp_path / "rows.jsonl", [{"video": path} for path in paths])


def identity(operator: Operator, path: Path) -> dict[str, Any]:
    source = open_source(path)
    return RunIdentity.of(operator, source, Target.of(path.with_name("out.jsonl")), limit=None).as_dict()


# which back end


@pytest.mark.parametrize(
    ("given", "backend", "model"),
    [
        ({}, "hf", DEFAULT_MODEL),
        ({"enable_vllm": True}, "vllm", DEFAULT_MODEL),
        ({"model_params": SERVER}, "server", ""),
        ({"backend": "hf"}, "hf", DEFAULT_MODEL),
        ({"backend": "vllm"}, "vllm", DEFAULT_MODEL),
        ({"backend": "vllm", "enable_vllm": True}, "vllm", DEFAULT_MODEL),
        ({"backend": "server", "model_params": SERVER}, "server", ""),
        ({"backend": "scripted"}, "scripted", "scripted"),
        ({"backend": "scripted", "hf_model": "mine"}, "scripted", "mine"),
    ],
)
def test_a_back_end_is_named_or_follows(given: dict[str, Any], backend: str, model: str) -> None:
    spec = Operator(**given).spec
    assert spec is not None
    assert (spec.backend, spec.model) == (backend, model)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"backend": "hf", "enable_vllm": True}, r"backend \(--backend\) is 'hf', and enable_vllm .* means 'vllm'"),
        ({"backend": "server", "enable_vllm": True, "model_params": SERVER}, "is 'server', and enable_vllm"),
        ({"backend": "hf", "model_params": SERVER}, r"is 'hf', and base_url \(--server\) names a server"),
        ({"backend": "vllm", "model_params": SERVER}, "is 'vllm', and base_url"),
        ({"backend": "scripted", "model_params": SERVER}, "is 'scripted', and base_url"),
        ({"backend": "server"}, r"is 'server', whose model runs elsewhere: say where with --server"),
        ({"enable_vllm": True, "model_params": SERVER}, "names a server, which runs the model itself"),
        ({"backend": "hf", "captioner": ModelSpec("hf", "x/y")}, "captioner replaces the model"),
        ({"backend": "ollama"}, "unknown back end 'ollama'; choose from hf, vllm, server, scripted"),
        ({"backend": ""}, "unknown back end ''"),
    ],
)
def test_what_contradicts_itself_is_refused_in_one_sentence(given: dict[str, Any], said: str) -> None:
    with pytest.raises(SettingsError, match=said) as caught:
        Operator(**given)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--backend", "hf", "--vllm"], 1, "error: backend (--backend) is 'hf', and enable_vllm (--vllm) means 'vllm'"),
        (["--backend", "hf", "--server", "http://h"], 1, "error: backend (--backend) is 'hf', and base_url (--server)"),
        (["--backend", "server"], 1, "error: backend (--backend) is 'server', whose model runs elsewhere"),
        (["--backend", "ollama"], 2, "'ollama' is not one of 'hf', 'vllm', 'server', 'scripted'"),
    ],
)
def test_the_command_refuses_the_same(rows: Path, arguments: list[str], code: int, said: str) -> None:
    result = CliRunner().invoke(main, ["caption", str(rows), "-o", str(rows.with_name("o.jsonl")), *arguments])
    assert (result.exit_code, said in result.stderr) == (code, True)
    assert sorted(path.name for path in rows.parent.iterdir()) == ["rows.jsonl"]


def test_a_recipe_names_a_back_end(tmp_path: Path) -> None:
    def parameters(**given: Any) -> dict[str, Any]:
        process = [{"video_captioning_from_vlm_mapper": given}]
        return parse_recipe({"dataset_path": "a.jsonl", "export_path": "b.jsonl", "process": process}).parameters

    spec = build_operator(parameters(backend="scripted", model_params={"template": "x"})).spec
    assert spec is not None
    assert (spec.backend, spec.options) == ("scripted", {"template": "x"})
    with pytest.raises(SettingsError, match="leave one of them out"):
        build_operator(parameters(backend="server", enable_vllm=True, model_params=SERVER))
    with pytest.raises(SettingsError, match="backend: input should be a valid string; got 3"):
        build_operator(parameters(backend=3))


@pytest.mark.parametrize(
    ("named", "plain"),
    [
        ({"backend": "hf"}, {}),
        ({"backend": "vllm"}, {"enable_vllm": True}),
        ({"backend": "vllm", "enable_vllm": True}, {"enable_vllm": True}),
        ({"backend": "server", "model_params": SERVER}, {"model_params": SERVER}),
    ],
)
def test_a_run_is_the_same_however_its_back_end_is_named(
    rows: Path, named: dict[str, Any], plain: dict[str, Any]
) -> None:
    assert identity(Operator(**named), rows) == identity(Operator(**plain), rows)
    assert "backend" not in identity(Operator(**plain), rows)["writing"]


def test_captioners_are_named_by_their_places() -> None:
    assert {name: BACKENDS[name].captioner for name in ("hf", "vllm", "server", "scripted")} == CAPTIONERS


# a back end of a package


def test_a_package_brings_a_back_end(echo: None, rows: Path) -> None:
    operator = Operator(
        backend="echo", batch_size=7, model_params={"voice": "loud"}, keep_original_sample=False, num_frames=4
    )
    assert operator.spec is not None
    assert (operator.spec.model, operator.spec.options) == ("parrot", {"at_once": 7, "voice": "loud"})
    made = operator.run([{"text": "", "videos": [row["video"]]} for row in load(rows)])
    operator.close()
    assert ["loud 4 frames, Describe, 0" in sample["text"] for sample in made] == [True, True]
    assert [(row, failure.kind) for row, _, failure in operator.failures] == [(1, "not_found")]
    assert operator.captioner.notes == ["echo of parrot, 7 at once"]  # type: ignore[attr-defined]


def test_what_its_row_says_counts_in_the_identity(echo: None, rows: Path) -> None:
    given = {"voice": "loud", "at_once": 3, "key": "SECRET"}
    operator = Operator(backend="echo", model_params=given)
    writing = identity(operator, rows)["writing"]
    assert (writing["backend"], writing["hf_model"]) == ("echo", "parrot")
    assert writing["model_params"] == {"voice": "loud"}
    assert writing["model_revision"] == "parrot-r1" == model_revision(ModelSpec("echo", "parrot"))
    assert writing["version of echo-captioner"] == "1.0"
    command = command_of(operator, open_source(rows), limit=None, failures=None)
    assert command is not None
    assert command["parameters"]["model_params"] == {"voice": "loud", "at_once": 3}
    assert BACKENDS["echo"].gpus({}) == 0.5


@pytest.mark.parametrize(
    ("spec", "kind", "said"),
    [
        (ModelSpec("echo", "m", {"volume": 3}), SettingsError, "has no option 'volume' for the back end 'echo'"),
        (ModelSpec("echo", "m", {"voise": "x"}), SettingsError, "did you mean voice"),
        (
            ModelSpec("echo", "m", {"loudness": "x"}),
            SettingsError,
            "has no option 'loudness' for the back end 'echo'; say voice",
        ),
        (ModelSpec("echo", "m", {"at_once": 0}), SettingsError, "at_once: Input should be greater than 0; got 0"),
        (ModelSpec("echo", "broken"), ModelError, "'echo' of echo-captioner cannot load the model 'broken': RuntimeE"),
        (ModelSpec("echo", "nothing"), ModelError, "'echo' of echo-captioner must make a captioner.*NoneType"),
        (ModelSpec("misspelt", "m"), ModelError, "'misspelt' of echo-captioner cannot load the model 'm': Attribute"),
    ],
)
def test_what_goes_wrong_in_a_package_is_one_sentence_that_names_it(
    echo: None, spec: ModelSpec, kind: type[Exception], said: str
) -> None:
    with pytest.raises(kind, match=said):
        load_captioner(spec)


def test_a_package_names_the_option_with_its_address(echo: None) -> None:
    with pytest.raises(SettingsError, match=r"say where with --model-param door=… \(model_params door\)"):
        Operator(backend="served-echo")
    assert Operator(backend="served-echo", model_params={"door": "4"}).spec is not None
    with pytest.raises(SettingsError, match="'served-echo', and base_url"):
        Operator(backend="served-echo", model_params={"door": "4", **SERVER})


def test_the_command_captions_with_it(site: Path, rows: Path, tmp_path: Path) -> None:
    given = (rows, "-o", tmp_path / "out.jsonl", "--backend", "echo", "--model-param", "voice=loud")
    assert "hf|vllm|server|scripted|echo|misspelt|served-echo" in "".join(
        reelscribe("caption", "--help", site=site, code=0).stdout.split()
    )
    done = reelscribe("caption", *given, "--batch-size", "9", site=site, code=3)
    assert "echo of parrot, 9 at once" in done.stdout
    made = load(tmp_path / "out.jsonl")
    assert [row["captions"] for row in made] == [["loud 2 frames, Describe, 0"], None, ["loud 2 frames, Describe, 0"]]
    before = (tmp_path / "out.jsonl").read_bytes()
    reelscribe("caption", *given, site=site, code=3)
    assert (tmp_path / "out.jsonl").read_bytes() == before
    (site / "echo_captioner-1.0.dist-info/METADATA").write_text(
        "Metadata-Version: 2.1\nName: echo-captioner\nVersion: 2\n"
    )
    changed = reelscribe("caption", *given, site=site, code=1)
    assert 'version of echo-captioner was "1.0" and is now "2"' in changed.stderr


@pytest.mark.slow
@pytest.mark.skipif(find_spec("ray") is None, reason="Ray is not installed (the extra `ray` brings it)")
def test_the_command_captions_with_it_on_a_cluster(site: Path, rows: Path, tmp_path: Path) -> None:
    given = ("--backend", "echo", "--candidates", "2", "--keep", "all")
    reelscribe("caption", rows, "-o", tmp_path / "here.jsonl", *given, site=site, code=3)
    done = reelscribe("caption", rows, "-o", tmp_path / "there.jsonl", *given, "--ray", site=site, code=3)
    assert "captions     4 for 3 videos" in done.stdout
    assert (tmp_path / "there.jsonl").read_bytes() == (tmp_path / "here.jsonl").read_bytes()
    assert len(load(tmp_path / "there.jsonl")[0]["captions"]) == 2
