"""A small text encoder, trained with the denoiser."""
