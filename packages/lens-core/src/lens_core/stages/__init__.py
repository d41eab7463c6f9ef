"""Stages that core brings."""
