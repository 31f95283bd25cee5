"""Parameters of other frameworks, for the networks of ``zipjax.models``."""
