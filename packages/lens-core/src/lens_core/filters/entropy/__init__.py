"""Drops images of few grey values."""
