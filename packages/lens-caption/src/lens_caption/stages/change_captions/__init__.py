"""The stage that makes caption arms of earlier layers."""
