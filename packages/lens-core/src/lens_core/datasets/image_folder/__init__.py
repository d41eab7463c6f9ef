"""The images below a folder or bucket."""
