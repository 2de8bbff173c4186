"""Find the attention layers a ViT does not need, and ship it without them."""

from lambda_vit_jax.version import __version__

__all__ = ['__version__']
