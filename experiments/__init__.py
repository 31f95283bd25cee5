"""Runnable experiments on top of zipjax: data, training, tables and plots."""
