"""An example plugin for Lens. Its door is `lens_acme.plugin`."""
