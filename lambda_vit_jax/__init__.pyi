"""Types of the names that `__init__.py` looks up when they are first used."""

from lambda_vit_jax.analysis.profile import entropy_profile as entropy_profile
from lambda_vit_jax.analysis.spectrum import spectrum as spectrum
from lambda_vit_jax.checkpoints.load import load_export as load_export
from lambda_vit_jax.checkpoints.load import load_pretrained as load_pretrained
from lambda_vit_jax.compression.greedy import compress as compress
from lambda_vit_jax.compression.record import Compression as Compression
from lambda_vit_jax.data.inputs import image_batches as image_batches
from lambda_vit_jax.data.inputs import preprocess as preprocess
from lambda_vit_jax.evaluation.scores import Evaluation as Evaluation
from lambda_vit_jax.evaluation.scores import evaluate as evaluate
from lambda_vit_jax.evaluation.scores import predict as predict
from lambda_vit_jax.exporters.export import export as export
from lambda_vit_jax.exporters.publish import push_to_hub as push_to_hub
from lambda_vit_jax.models.adapt import backbone as backbone
from lambda_vit_jax.models.adapt import with_decoder as with_decoder
from lambda_vit_jax.models.edits import dequantize as dequantize
from lambda_vit_jax.models.edits import drop_blocks as drop_blocks
from lambda_vit_jax.models.edits import fold as fold
from lambda_vit_jax.models.edits import merge_tokens as merge_tokens
from lambda_vit_jax.models.edits import narrow_mlps as narrow_mlps
from lambda_vit_jax.models.edits import prune as prune
from lambda_vit_jax.models.edits import quantize as quantize
from lambda_vit_jax.models.model import Model as Model
from lambda_vit_jax.models.model import create_model as create_model
from lambda_vit_jax.models.variants import list_models as list_models
from lambda_vit_jax.selection.nose import nose as nose
from lambda_vit_jax.selection.record import Selection as Selection
from lambda_vit_jax.selection.stored import load_selection as load_selection
from lambda_vit_jax.training_free.block_spans import (
  choose_blocks as choose_blocks,
)
from lambda_vit_jax.training_free.dilute import dilute as dilute
from lambda_vit_jax.training_free.linear_maps import linearize as linearize
from lambda_vit_jax.training_free.mlp_refit import refit as refit
from lambda_vit_jax.training_free.neurons import narrow as narrow
from lambda_vit_jax.training_free.norm_recentring import recentre as recentre
from lambda_vit_jax.training_free.polish import polish as polish

__version__: str
__all__: list[str]
