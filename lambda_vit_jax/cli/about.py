"""What `lambda-vit` says of itself: `help`, `--version`, `completion`."""

from collections.abc import Callable, Sequence

from lambda_vit_jax import __version__
from lambda_vit_jax.cli.flags import find_config, full_keys
from lambda_vit_jax.cli.help import COMMANDS, HELP, STAGES, help_of
from lambda_vit_jax.core.errors import UsageError, nearest

_FLAGS = (
  '--config=',
  '--workdir=',
  '--print-config',
  '--json',
  '--quiet',
  '--debug',
  '--help',
)

# The words before and after `=` are separate ones in bash.
_BASH = """\
_lambda_vit() {{
  local word="${{COMP_WORDS[COMP_CWORD]}}"
  if [ "$COMP_CWORD" = 1 ]; then
    COMPREPLY=($(compgen -W "{names}" -- "$word"))
  elif [ "$word" = = ] || [ "${{COMP_WORDS[COMP_CWORD-1]}}" = = ]; then
    compopt -o filenames
    COMPREPLY=($(compgen -f -- "${{word#=}}"))
  else
    compopt -o nospace
    COMPREPLY=($(compgen -W "{flags}" -- "$word"))
    [ ${{#COMPREPLY[@]}} = 0 ] && COMPREPLY=($(compgen -f -- "$word"))
  fi
}}
complete -F _lambda_vit lambda-vit"""


def _help(arguments: Sequence[str]) -> str:
  """The help of one stage or command, or of the whole program.

  Raises:
    UsageError: neither a stage nor a command.
  """
  name = arguments[0] if arguments else ''
  if name and name not in (*HELP, *ABOUT):
    raise UsageError(
      f'help: unknown stage {name!r}{nearest(name, HELP)} (`lambda-vit --help` '
      'lists all)'
    )
  return help_of(name)


def _version(arguments: Sequence[str]) -> str:
  return f'lambda-vit {__version__}'


def _completion(arguments: Sequence[str]) -> str:
  """A script that completes stages, flags and the keys of a config.

  Raises:
    UsageError: another shell.
  """
  if list(arguments) != ['bash']:
    raise UsageError(
      'completion: give bash, whose script zsh runs too after `bashcompinit`: '
      'eval "$(lambda-vit completion bash)"'
    )
  keys = full_keys([f'--config={find_config("digits")}'])
  return _BASH.format(
    names=' '.join([*STAGES, *COMMANDS, *ABOUT]),
    flags=' '.join([*_FLAGS, *(f'--config.{key}=' for key in keys)]),
  )


ABOUT: dict[str, Callable[[Sequence[str]], str]] = {
  'help': _help,
  '--version': _version,
  'completion': _completion,
}
"""By its first word, what a command line prints."""
