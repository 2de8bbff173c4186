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


def import_extra(package: str, wanted_by: str, instead: str = '') -> Any:
  """Imports a package of `EXTRAS`.

  Args:
    package: its name.
    wanted_by: what needs it, the start of the error's line.
    instead: what else to do about it, `, or …`.

  Raises:
    LambdaVitError: it is not installed.
  """
  # OpenVINO's telemetry starts a process that sends to a server; without that
  # package OpenVINO and NNCF do without.
  modules: dict[str, Any] = sys.modules
  modules.setdefault('openvino_telemetry', None)
  try:
    return importlib.import_module(package)
  except ImportError:
    raise LambdaVitError(
      f'{wanted_by}: needs the package {package}; install it (pip install '
      f"'lambda_vit_jax[{EXTRAS[package]}]'){instead}"
    ) from None


def is_installed(package: str) -> bool:
  """Whether a package can be imported, without importing it."""
  return importlib.util.find_spec(package) is not None
