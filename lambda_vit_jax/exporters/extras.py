"""Packages of the extras, imported when something first needs them."""

import importlib
import importlib.util
import sys
from typing import Any

from lambda_vit_jax.core.errors import LambdaVitError

EXTRAS = {
  'nncf': 'openvino',
  'onnx': 'onnx',
  'onnxruntime': 'onnx',
  'openvino': 'openvino',
  'timm': 'timm',
  'torch': 'timm',
}
"""By package, the extra of this one that installs it."""


def leave_out(name: str) -> str:
  """What else to do about a package that a format needs."""
  return f', or leave `{name}` out of the formats'


def import_extra(package: str, wanted_by: str, instead: str = '') -> Any:
  """Imports a package of `EXTRAS`.

  Args:
    package: its name, or that of a module in it.
    wanted_by: what needs it, the start of the error's line.
    instead: what else to do about it, `, or …`.

  Raises:
    LambdaVitError: it is not installed, or does not fit what is.
  """
  # OpenVINO's telemetry starts a process that sends to a server; without that
  # package OpenVINO and NNCF do without.
  modules: dict[str, Any] = sys.modules
  modules.setdefault('openvino_telemetry', None)
  try:
    return importlib.import_module(package)
  except ModuleNotFoundError as error:
    if package not in EXTRAS or error.name != package:
      raise _unfit(package, wanted_by, error) from error
    raise _missing(package, wanted_by, instead) from None
  except Exception as error:
    # torchvision of another PyTorch ends in a RuntimeError.
    raise _unfit(package, wanted_by, error) from error


def check_installed(package: str, wanted_by: str, instead: str = '') -> None:
  """`import_extra` without importing; it may still not fit what is there."""
  if not is_installed(package):
    raise _missing(package, wanted_by, instead)


def _missing(package: str, wanted_by: str, instead: str) -> LambdaVitError:
  return LambdaVitError(
    f'{wanted_by}: needs the package {package}; install it (pip install '
    f"'lambda_vit_jax[{EXTRAS[package]}]'){instead}"
  )


def _unfit(package: str, wanted_by: str, error: Exception) -> LambdaVitError:
  reason = ' '.join(str(error).split())[:120]
  return LambdaVitError(
    f'{wanted_by}: the package {package} is installed and cannot be imported '
    f'({reason}); install it anew, with versions that fit each other'
  )


def is_installed(package: str) -> bool:
  """Whether a package can be imported, without importing it."""
  return importlib.util.find_spec(package) is not None
