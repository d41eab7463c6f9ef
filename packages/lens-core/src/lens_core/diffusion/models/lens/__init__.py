"""The Lens denoiser."""
