"""Stages of lens-caption."""
