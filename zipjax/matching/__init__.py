"""Matchers: from a similarity matrix to an assignment, on the host.

Every matcher takes ``similarity`` ``[N*n, N*n]`` (the ``n`` units of model 0, then
those of model 1, ...) and the number ``N`` of models, and returns an *assignment*: an
int64 vector ``[N*n]`` that holds, for each unit, the number of the merged unit that it
becomes part of. Merged units are numbered in the order of their first members, and none
is empty. If units come in groups, the merged groups are numbered in that way, and so
are the merged units within each.
"""
