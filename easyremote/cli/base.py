"""What all commands share: how they fail, and groups that take an argument of their own.

Theory. Whoever types a command wants to know what went wrong and what to do, in one sentence. Our
errors say both already; here is the door through which they become text and an exit code.

Rules of this file. 1) A failure is one sentence on stderr and exit code 1; wrong usage is exit code
2. 2) A traceback is shown only with `--debug`, which every command takes. 3) What is quoted back to
the user, usage errors included, has its secrets masked.
"""

from __future__ import annotations

import errno
import traceback
from typing import Any, NoReturn

import click

from ..errors import EasyRemoteError, RemoteExecutionError
from ..log import clean, mask

SENTENCE_CHARS_MAX = 2000
_DEBUG = "easyremote.debug"


def _note_debug(context: click.Context, _option: click.Parameter, given: bool) -> None:
    if given:
        context.meta[_DEBUG] = True


def _debug_option() -> click.Option:
    return click.Option(
        ["--debug"],
        is_flag=True,
        is_eager=True,
        expose_value=False,
        callback=_note_debug,
        help="Show the traceback of an error.",
    )


class Command(click.Command):
    """A command; it takes `--debug` beside its own options."""

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        """Return the options and arguments, with `--debug` before `--help`."""
        *own, last = super().get_params(ctx)
        return [*own, _debug_option(), last]


class Group(click.Group):
    """A group of commands; it takes `--debug` as they do."""

    command_class = Command

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        """Return the options, with `--debug` before `--help`."""
        *own, last = super().get_params(ctx)
        return [*own, _debug_option(), last]


class ArgumentGroup(Group):
    """A group whose first argument may be something else than the name of a command.

    Attributes:
        otherwise: The command that takes it then; it is not listed.
    """

    otherwise: click.Command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Return the command that the first argument names, else `otherwise`."""
        first = args[0]
        if first in self.commands or (first.startswith("-") and first != "-"):
            return super().resolve_command(ctx, args)
        return "", self.otherwise, args


class RootGroup(Group):
    """The command `easyremote`: where every error ends up."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Read the options in front of the command."""
        try:
            return super().parse_args(ctx, args)
        except click.ClickException as error:
            raise _masked(error) from None

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command and turn what it raises into a sentence and an exit code."""
        try:
            return super().invoke(ctx)
        except click.ClickException as error:
            raise _masked(error) from None
        except BaseException as error:  # noqa: BLE001  # The door to the user.
            _end(ctx, _only(error))


def _masked(error: click.ClickException) -> click.ClickException:
    """Return an error of click without the secrets that it may quote from the command line."""
    text = error.format_message()
    masked = mask(text)
    if masked == text:
        return error
    if isinstance(error, click.UsageError):
        return click.UsageError(masked, error.ctx)
    return click.ClickException(masked)


def _end(ctx: click.Context, error: BaseException) -> NoReturn:
    if not isinstance(error, Exception) or isinstance(error, click.exceptions.Exit | click.Abort):
        raise error
    if isinstance(error, OSError) and error.errno == errno.EPIPE:
        raise error  # click ends quietly when a reader like `head` has seen enough
    if ctx.meta.get(_DEBUG):
        click.echo(mask("".join(traceback.format_exception(error))), err=True, nl=False)
    raise click.ClickException(sentence(error)) from error


def _only(error: BaseException) -> BaseException:
    """Return the one error in a group of one: a nursery wraps what leaves it."""
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error


def sentence(error: BaseException) -> str:
    """Return what `error` means, for the person at the terminal, on one line."""
    if isinstance(error, RemoteExecutionError):
        text = f"the function raised {error.type_name.removeprefix('builtins.')}: {error}"
    elif isinstance(error, OSError) and not isinstance(error, EasyRemoteError) and error.strerror:
        text = error.strerror if error.filename is None else f"{error.filename}: {error.strerror}"
    elif isinstance(error, EasyRemoteError | OSError | ValueError | NotImplementedError):
        text = str(error) or type(error).__name__
    else:
        text = (
            f"this is a mistake in EasyRemote: {type(error).__name__}: {error}. Please report it, "
            "with the traceback that --debug shows"
        )
    # What a function or a peer says is data: it must not move the cursor.
    return clean(mask(" ".join(text.split())), SENTENCE_CHARS_MAX)


def run_async(function: Any, *args: Any) -> Any:
    """Run an async function of a command to its end."""
    import trio

    return trio.run(function, *args)
