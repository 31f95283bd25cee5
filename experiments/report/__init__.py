"""The report of a run: its table, and its pictures.

Every picture is a new `matplotlib.figure.Figure` outside pyplot's global state, which
needs neither a display nor to be closed.
"""
