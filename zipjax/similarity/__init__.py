"""What matchers compare: moments of activations, and weights."""
