"""Resolve names of models as people write and paste them.

A local folder is used as it is; everything else must mean exactly one repository on the hub.
"""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from ..errors import SettingsError
from .captioner import ModelSpec

BUNDLED_MODELS = {"reelscribe/shapes": Path(__file__).parent / "bundled" / "shapes"}
"""Models that come with the package: name to folder."""

HUB_HOSTS = ("huggingface.co", "hf.co")
"""Hosts of the hub; `HF_ENDPOINT` sets another."""
MODEL_FILES = (".json", ".md", ".safetensors", ".bin", ".jinja", ".txt", ".model", ".py", ".gitattributes", "LICENSE")
"""Suffixes of files whose page stands for the model that they belong to."""
NO_MODELS = ("blog", "chat", "collections", "docs", "join", "learn", "login", "new", "organizations", "papers", "posts",
             "pricing", "search", "settings", "tasks")  # fmt: skip
"""First parts of addresses on the hub that are the hub's own pages."""
DEFAULT_TAGS = ("latest", "main")
"""Tags and revisions that mean the current model."""
LONGEST_NAME = 96
LONGEST_SHOWN = 200

_HUB_NAME = re.compile(r"(\w[\w.-]*/)?\w[\w.-]*(?<![.-])", re.ASCII)
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_PATH = re.compile(r"[/~]|\.{1,2}(/|$)|[A-Za-z]:[\\/]")
_PAIRS = ('""', "''", "``", "“”", "„“", "‘’", "«»", "<>", "()", "[]")
_DASHES = str.maketrans(dict.fromkeys("‐‑‒–—−", "-"))
_EXAMPLE = "a model on the hub is named like Qwen/Qwen3-VL-8B-Instruct"


@dataclass(frozen=True, slots=True)
class ModelName:
    """A resolved name."""

    name: str
    """A bundled model, a local path, or a name on the hub."""
    revision: str | None = None
    """Branch, tag or commit in the name; None: none, or the default one."""
    subfolder: str | None = None
    """Folder inside the repository, if the name has one."""


def checkpoint_spec(spec: ModelSpec) -> ModelSpec:
    """The spec with its model as transformers names it.

    Raises:
        SettingsError: the name means no model, or contradicts `model_params`.
    """
    meant = read_model_name(spec.model)
    options = dict(spec.options)
    for option in ("revision", "subfolder"):
        held = getattr(meant, option)
        if held is not None and options.get(option, held) != held:
            raise SettingsError(
                f"the model {_shown(spec.model)} names the {option} {held!r}, and model_params {options[option]!r}; "
                "leave one of them out"
            )
        options |= {} if held is None else {option: held}
    return replace(spec, model=meant.name, options=options)


def whole_checkpoint_spec(spec: ModelSpec) -> ModelSpec:
    """The same for vLLM, which loads whole repositories alone.

    Raises:
        SettingsError: the name means no model, contradicts `model_params`, or holds a folder of a repository.
    """
    found = checkpoint_spec(spec)
    if read_model_name(spec.model).subfolder is not None:
        raise SettingsError(
            f"the model {_shown(spec.model)} is a subfolder of its repository, and vLLM loads whole repositories only; "
            "download it and give its folder"
        )
    return found


def local_folder(name: str) -> Path | None:
    """The local folder that a name refers to, or None."""
    try:
        path = Path(name).expanduser()
        return path if name and path.is_dir() else None
    except (OSError, RuntimeError, ValueError):  # too long, an unknown user, or invalid characters
        return None


def read_model_name(text: str) -> ModelName:
    """Resolve a name that a person wrote or pasted.

    Accepts local folders, names on the hub with `@revision`, addresses of pages and files on the hub, `hf://`
    addresses, and those of git; blanks, quotes and invisible characters around them are stripped.

    Raises:
        SettingsError: it means no model, or could mean several.
    """
    name = text if _is_here(text) else _unwrapped(text)
    if not name:
        raise SettingsError(f"the name of the model is empty; {_EXAMPLE}, or by its folder")
    if name[:7].lower() == "file://":
        name = unquote(urlsplit(name).path)
    if _is_here(name) or _PATH.match(name):
        return ModelName(name)
    if _is_address(name):
        return _of_address(name, text)
    return _of_hub_name(name, text)


def _is_here(name: str) -> bool:
    if name in BUNDLED_MODELS or local_folder(name) is not None:
        return True
    try:
        return bool(name) and Path(name).is_file()
    except (OSError, ValueError):
        return False


def _unwrapped(text: str) -> str:
    """A name without what was pasted with it."""
    name = "".join(one for one in text if unicodedata.category(one) != "Cf").strip()
    while len(name) > 1 and name[0] + name[-1] in _PAIRS:
        name = name[1:-1].strip()
    return name.translate(_DASHES)


def _is_address(name: str) -> bool:
    return bool(_SCHEME.match(name)) or name.startswith("git@") or _host_of(name) in _hosts()


def _host_of(address: str) -> str:
    host = _SCHEME.sub("", address).partition("/")[0].rpartition("@")[2].lower()
    return host.removeprefix("www.")


def _hosts() -> tuple[str, ...]:
    endpoint = os.environ.get("HF_ENDPOINT", "")
    return (*HUB_HOSTS, _host_of(endpoint)) if endpoint else HUB_HOSTS


def _of_address(name: str, text: str) -> ModelName:
    """Resolve an address on the hub: a repository's page, a file or folder in it, or its git address."""
    if name.startswith("git@"):
        name = "https://" + name.removeprefix("git@").replace(":", "/", 1)
    scheme = found[1].lower() if (found := _SCHEME.match(name)) else "https"
    rest = _SCHEME.sub("", name)
    if scheme == "hf":
        return _of_uri(f"hf://{rest}", text)
    host = _host_of(name)
    if scheme not in ("http", "https", "ssh", "git") or host not in _hosts():
        raise SettingsError(f"the model {_shown(text)} {_elsewhere(scheme, host)}")
    path = re.sub("/+", "/", rest.partition("/")[2].partition("?")[0].partition("#")[0]).strip("/").removesuffix(".git")
    if path.partition("/")[0] in NO_MODELS:
        raise SettingsError(f"the model {_shown(text)} is a page of the hub that shows no model; {_EXAMPLE}")
    return _of_uri(f"https://{HUB_HOSTS[0]}/{_routed(path)}", text)


def _elsewhere(scheme: str, host: str) -> str:
    if scheme not in ("http", "https", "ssh", "git"):
        return "is an address that no model can be loaded from; download it and give its folder"
    return (
        f"is an address at {host!r}, which is not a model hub (HF_ENDPOINT sets a hub other than huggingface.co); "
        "give its name on the hub, or its folder; if a server runs a model there, use --server"
    )


def _routed(path: str) -> str:
    """A path on the hub whose route gives the revision, or none."""
    parts = path.split("/")
    if parts[2:3] == ["commit"] or parts[2:3] == ["commits"]:
        return "/".join([*parts[:2], "tree", *parts[3:4]])
    known = ("tree", "blob", "resolve", "raw", "blame")
    typed = parts[0] in ("datasets", "spaces", "models", "kernels", "buckets")
    return path if typed or len(parts) < 3 or parts[2] in known else "/".join(parts[:2])


def _of_uri(uri: str, text: str) -> ModelName:
    from huggingface_hub import parse_hf_uri
    from huggingface_hub.errors import HfUriError

    _check_tag(uri.partition("://")[2].partition("@")[0].removeprefix(f"{HUB_HOSTS[0]}/"), text)
    try:
        meant = parse_hf_uri(_without_tag(uri))
    except HfUriError as exc:
        raise SettingsError(f"the model {_shown(text)} is not the address of a model on the hub; {_EXAMPLE}") from exc
    if meant.type != "model":
        raise SettingsError(f"the model {_shown(text)} is the address of a {meant.type}, not of a model; {_EXAMPLE}")
    revision = None if meant.revision in DEFAULT_TAGS else meant.revision
    return ModelName(meant.id, revision, _folder_in(meant.path_in_repo, meant.id, text))


def _folder_in(path: str, name: str, text: str) -> str | None:
    """The folder of a repository that a path in it refers to; files of a whole model refer to its folder."""
    if path.lower().endswith(".gguf"):
        raise SettingsError(
            f"the model {_shown(text)} is one GGUF file; name the repository ({name}) and the file with model_params "
            f"gguf_file={path.rpartition('/')[2]}"
        )
    if path.endswith(MODEL_FILES):
        path = path.rpartition("/")[0]
    return path.strip("/") or None


def _of_hub_name(name: str, text: str) -> ModelName:
    """Resolve a name without a scheme."""
    name = re.sub(r"\s*/\s*", "/", name).rstrip("/").removesuffix(".git")
    if name.startswith("models--") and name.count("--") == 2:  # as the hub's cache names its folders
        name = name.removeprefix("models--").replace("--", "/")
    repository, at, revision = name.partition("@")
    _check_tag(repository, text)
    repository, revision = _without_tag(repository), revision.strip()
    if is_hub_name(repository) and bool(at) == bool(revision):
        return ModelName(repository, None if revision in ("", *DEFAULT_TAGS) else revision)
    raise SettingsError(f"the model {_shown(text)} is neither a local folder nor a name on the hub{_hint(repository)}")


def is_hub_name(name: str) -> bool:
    """Whether a repository on the hub can have this name."""
    well_made = len(name) <= LONGEST_NAME and _HUB_NAME.fullmatch(name) is not None
    return well_made and not ("--" in name or ".." in name or name.endswith(".git"))


def _hint(name: str) -> str:
    """A suggestion for what was meant."""
    for wrong in (r"\s+", r"\\"):
        other = re.sub(wrong, "-" if wrong == r"\s+" else "/", name)
        if other != name and is_hub_name(other):
            return f"; did you mean {other}?"
    return f"; {_EXAMPLE}"


def _check_tag(name: str, text: str) -> None:
    """Refuse `name:tag`, unless the tag has no effect.

    Raises:
        SettingsError: the message says what the tag may mean.
    """
    repository, _, tag = name.partition(":")
    if not tag or (tag in DEFAULT_TAGS and "/" in repository):
        return
    if "/" not in repository:
        raise SettingsError(
            f"the model {_shown(text)} has the form of an Ollama name, not of one on the hub; {_EXAMPLE}. For a server "
            "that knows it by that name give its address too, such as --server http://localhost:11434/v1"
        )
    raise SettingsError(
        f"the model {_shown(text)} has a tag, {_shown(tag)}, and the hub has no tags: it may be a revision "
        f"({repository}@{tag}), or a quantisation, which has its own repository"
    )


def _without_tag(name: str) -> str:
    return re.sub(rf":({'|'.join(DEFAULT_TAGS)})(?=@|$)", "", name)


def served_names(name: str) -> list[str]:
    """Names that a server may use for a model that a person named so, the most likely first: a tag without effect may
    be present or not."""
    plain = plain_name(name)
    return list(dict.fromkeys([name, plain, plain.removesuffix(":latest"), f"{plain}:latest"]))


def plain_name(name: str) -> str:
    """A name without what was pasted with it; of an address on the hub, the model's name there."""
    plain = _unwrapped(name)
    try:
        return read_model_name(plain).name if _is_address(plain) else plain
    except SettingsError:
        return plain


def _shown(text: str) -> str:
    return repr(text) if len(text) <= LONGEST_SHOWN else f"{text[:LONGEST_SHOWN]!r}…"


def hub_arguments(meant: ModelName, hub: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments that select which files of a repository to read: those common to all, and its own."""
    common = {key: value for key, value in hub.items() if key not in ("revision", "subfolder")}
    own = {"revision": meant.revision, "subfolder": meant.subfolder}
    return common | {key: value for key, value in own.items() if value is not None}
