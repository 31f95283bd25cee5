"""What is merged: data, tasks, architectures, and the networks trained on them."""
