"""Matchers: from a similarity matrix to an assignment, on the host.

Every matcher takes ``similarity`` ``[N*n, N*n]`` (the ``n`` units of model 0, then
those of model 1, ...) and the number ``N`` of models, and returns an *assignment*: an
int64 vector ``[N*n]`` giving for each unit the index of the merged unit that it goes
to. Merged units are numbered in the order of their smallest member and none is empty.
Where units come in groups, merged groups are numbered that way, and so are the merged
units of each.
"""
