"""The command line. Each module in `commands` adds its own, and is imported when one of them is run."""

import ast
import importlib
import math
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

import clickmask
from clickmask import plugins
from clickmask.errors import NEEDS_MEMORY, is_out_of_memory
from clickmask_adapters import commands

MIN_ADDRESS_SPACE = 550_000_000  # in less, libraries crash while they are imported


class Commands(TyperGroup):
    """Command group that reads names and help from source: importing all commands takes a second."""

    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        self._modules: dict[str, str] = {}
        for module in plugins.names(commands):
            try:
                spec = find_spec(f"{commands.__name__}.{module}")
                if spec is None or spec.origin is None:  # it comes from another distribution
                    self.commands.update(load(module))
                    continue
                found = list(declared(Path(spec.origin).read_text()))
            except Exception as error:  # noqa: BLE001 - foreign code: it must not take the other commands along
                typer.echo(f"the commands of {module} are {_broken(error)} and left out", err=True)
                continue
            for name, said in found:
                self.commands[name] = TyperCommand(name, help=said)
                self._modules[name] = module

    def list_commands(self, ctx: Any) -> list[str]:
        return sorted(self.commands)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        name, command, rest = super().resolve_command(ctx, args)
        if name in self._modules:
            try:
                if address_space() < MIN_ADDRESS_SPACE:
                    raise MemoryError
                command = load(self._modules[name])[name]
            except Exception as error:  # foreign code, as above; what is wrong is said
                lacks_memory = is_out_of_memory(error)
                said = (
                    f"clickmask {NEEDS_MEMORY}" if lacks_memory else f"the command {name} is {_broken(error)}"
                )
                typer.echo(said, err=True)
                raise typer.Exit(1) from error
        return name, command, rest


def address_space() -> float:
    """Bytes of it that this process may have."""
    try:
        resource: Any = importlib.import_module("resource")
    except ImportError:  # Windows
        return math.inf
    most = resource.getrlimit(resource.RLIMIT_AS)[0]
    return math.inf if most == resource.RLIM_INFINITY else most


def load(module: str) -> dict[str, Any]:
    """Commands and groups of a module, by name."""
    return dict(typer.main.get_group(plugins.load(commands, module).cli).commands)


def declared(source: str) -> Iterator[tuple[str, str]]:
    """Names and first help lines of the commands and groups in a module's source."""
    for node in ast.parse(source).body:
        match node:
            case ast.FunctionDef(name, decorator_list=[ast.Call(ast.Attribute(ast.Name("cli")), arguments)]):
                (named,) = [ast.literal_eval(each) for each in arguments] or [name.replace("_", "-")]
                yield named, (ast.get_docstring(node) or "").partition("\n")[0]
            case ast.Assign(value=ast.Call(ast.Attribute(attr="Typer"), keywords=[_, *_] as keywords)):
                given = {each.arg: each.value for each in keywords}
                yield ast.literal_eval(given["name"]), ast.literal_eval(given["help"])
            case _:
                pass


def _broken(error: Exception) -> str:
    return f"broken ({type(error).__name__}: {error})"


def print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"clickmask {clickmask.__version__}")
        raise typer.Exit


app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Clicks and boxes become masks.",
)


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Options that come before the command."""


if __name__ == "__main__":
    app()
