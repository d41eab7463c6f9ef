"""The FLUX.2 autoencoder."""
