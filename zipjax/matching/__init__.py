"""Matchers: from a similarity matrix to an assignment, on the host.

Every matcher takes ``similarity`` ``[N*n, N*n]`` (the ``n`` units of model 0, then
those of model 1, ...) and the number ``N`` of models, and returns an *assignment*: an
int64 vector ``[N*n]`` giving for each unit the index of the merged unit that it goes
to. Merged units are numbered in the order of their smallest member and none is empty.
Where units come in groups, merged groups are numbered that way, and so are the merged
units of each.
"""

from zipjax.matching.align import match_align
from zipjax.matching.grouped import (
    Matcher,
    Nest,
    match_grouped_align,
    match_grouped_zip,
    match_nest,
)
from zipjax.matching.identity import match_identity
from zipjax.matching.zipping import match_zip

__all__ = [
    "Matcher",
    "Nest",
    "match_align",
    "match_grouped_align",
    "match_grouped_zip",
    "match_identity",
    "match_nest",
    "match_zip",
]
