"""Data-Juicer's own video code on the PyAV that is installed.

py-data-juicer 1.6.1 is written for PyAV 13 and calls what later versions removed: its operators then fail for every
row, and with `skip_op_error: true` rows are dropped. The functions that do so are compiled again from their own source,
with those calls replaced. Nothing is replaced where PyAV still has what is called.
"""

from __future__ import annotations

import ast
import functools
import importlib
import inspect
import os
import textwrap
from collections.abc import Callable
from operator import attrgetter
from types import CodeType, FunctionType
from typing import Any

import av
from av.codec.context import CodecContext
from loguru import logger

FUNCTIONS = (
    "data_juicer.utils.mm_utils:close_video",
    "data_juicer.utils.mm_utils:cut_video_by_seconds",
    "data_juicer.utils.mm_utils:process_each_frame",
    "data_juicer.ops.op_fusion:FusedFilter.compute_stats_batched",
    "data_juicer.ops.fused_batch_executor:_cleanup_context_rows",
    "data_juicer.ops.filter.video_face_ratio_filter:VideoFaceRatioFilter.compute_stats_single",
)
"""Every function of py-data-juicer 1.6.1 that calls what PyAV removed, as `module:name`."""

RAY_HOOK_VARIABLE = "RAY_RUNTIME_ENV_HOOK"
"""Names a function that `ray.init` gives its runtime environment to."""


def _close_stream(node: ast.AST) -> ast.AST:
    """`stream.close()`: a container closes its streams itself."""
    match node:
        case ast.Expr(ast.Call(ast.Attribute(attr="close"), keywords=[ast.keyword(arg="strict")])):
            return ast.Pass()
        case ast.Expr(ast.Call(ast.Attribute(ast.Subscript(ast.Attribute(attr="video")), attr="close"))):
            return ast.Pass()
    return node


def _stream_from_template(node: ast.AST) -> ast.AST:
    """`container.add_stream(template=stream)`."""
    match node:
        case ast.Call(ast.Attribute(container, "add_stream"), [], [ast.keyword("template", stream)]):
            return ast.Call(ast.Attribute(container, "add_stream_from_template", ast.Load()), [stream], [])
    return node


def _size_before_open(node: ast.AST) -> ast.AST:
    """`stream.width = …` for every frame: the size is fixed by the first one, and PyAV scales the others to it."""
    match node:
        case ast.Assign([ast.Attribute(stream, "width" | "height")], ast.Attribute(ast.Name())):
            opened = ast.Attribute(ast.Attribute(_loaded(stream), "codec_context", ast.Load()), "is_open", ast.Load())
            return ast.If(ast.UnaryOp(ast.Not(), opened), [node], [])
    return node


def _base_error(node: ast.AST) -> ast.AST:
    """`av.AVError`."""
    match node:
        case ast.Attribute(ast.Name("av"), "AVError"):
            return ast.Attribute(node.value, "FFmpegError", ast.Load())
    return node


def _loaded(expression: ast.expr) -> ast.expr:
    return ast.parse(ast.unparse(expression), mode="eval").body


def _size_is_fixed() -> bool:
    """Whether the size of an encoder cannot be set once it is open."""
    encoder = av.VideoCodecContext.create("rawvideo", "w")
    encoder.width, encoder.height, encoder.pix_fmt = 2, 2, "rgb24"
    encoder.time_base = 1
    encoder.open()
    try:
        encoder.width = 2
    except RuntimeError:
        return True
    return False


REPLACEMENTS: dict[str, tuple[Callable[[], bool], Callable[[ast.AST], ast.AST]]] = {
    "stream.close()": (lambda: not hasattr(CodecContext, "close"), _close_stream),
    "add_stream(template=)": (lambda: hasattr(av.container.OutputContainer, "add_stream_from_template"),
                              _stream_from_template),
    "stream.width": (_size_is_fixed, _size_before_open),
    "av.AVError": (lambda: not hasattr(av, "AVError"), _base_error),
}  # fmt: skip
"""What Data-Juicer calls: whether the installed PyAV lacks it, and what takes its place."""


class _Replace(ast.NodeTransformer):
    def __init__(self, names: list[str]) -> None:
        self.names = names
        self.found: set[str] = set()

    def visit(self, node: ast.AST) -> Any:
        node = self.generic_visit(node)
        for name in self.names:
            made = REPLACEMENTS[name][1](node)
            if made is not node:
                self.found.add(name)
                return ast.copy_location(made, node)
        return node


def adapt() -> dict[str, tuple[str, ...]]:
    """Make Data-Juicer's functions fit the installed PyAV, for this process and those forked from it.

    The code of a function is exchanged, not the function: operators hold it under names of their own.

    Returns:
        For each function that was changed, what it called that PyAV lacks.
    """
    importlib.import_module("data_juicer.ops")  # adapts too, where there is the entry point
    return _adapt_once()


@functools.cache
def _adapt_once() -> dict[str, tuple[str, ...]]:
    lacking = [name for name, (lacks, _) in REPLACEMENTS.items() if lacks()]
    changed = {name: found for name in FUNCTIONS if (found := _adapt_function(name, lacking))}
    if changed:
        logger.warning(
            f"PyAV {av.__version__} lacks what Data-Juicer's video operators call "
            f"({', '.join(sorted({call for found in changed.values() for call in found}))}); reelscribe replaced these "
            f"calls in {', '.join(name.partition(':')[2] for name in changed)}, so that the operators run"
        )
    return changed


def _adapt_function(name: str, lacking: list[str]) -> tuple[str, ...]:
    module, _, path = name.partition(":")
    try:
        function = inspect.unwrap(attrgetter(path)(importlib.import_module(module)))
        lines, first_line = inspect.getsourcelines(function)
        tree = ast.parse(textwrap.dedent("".join(lines)))
        replace = _Replace(lacking)
        tree = ast.fix_missing_locations(replace.visit(ast.increment_lineno(tree, first_line - 1)))
        if replace.found:
            function.__code__ = _code_of(function, compile(tree, function.__code__.co_filename, "exec"))
        return tuple(sorted(replace.found))
    except (ImportError, AttributeError, OSError, SyntaxError, TypeError, ValueError) as exc:
        logger.warning(f"{name} of Data-Juicer could not be searched for calls that PyAV {av.__version__} lacks: {exc}")
        return ()


def _code_of(function: FunctionType, module: CodeType) -> CodeType:
    """The code of the function that a module defines, as if it stood where the one given stands."""
    (code,) = (part for part in module.co_consts if isinstance(part, CodeType) and part.co_name == function.__name__)
    return code.replace(co_qualname=function.__code__.co_qualname)


def adapt_ray_workers() -> None:
    """Let every worker of Ray that is started for this process adapt its Data-Juicer too.

    Needed only where no entry point does: a worker that runs another operator would not import this package.
    """
    here = f"{__name__}.{_with_setup_hook.__name__}"
    taken = os.environ.setdefault(RAY_HOOK_VARIABLE, here)
    if taken != here:
        logger.warning(
            f"{RAY_HOOK_VARIABLE} is {taken!r}, so Data-Juicer's video operators are not adapted to "
            f"PyAV {av.__version__} in Ray's workers; install reelscribe instead of naming its file"
        )


def _with_setup_hook(runtime_env: dict[str, Any] | None) -> dict[str, Any]:
    return {"worker_process_setup_hook": f"{__name__}.adapt", **(runtime_env or {})}
