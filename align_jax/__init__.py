"""align_jax: the open ALIGN (arXiv 2102.05918) for JAX."""
