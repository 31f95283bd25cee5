"""Conversion of other frameworks' parameters for the networks of ``zipjax.models``."""
